"""Exported runs in Hugging Face's hands: the same logits and codes, and a pipeline that plays."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_run import make_run, make_t5, make_tiny_run, random_model, their_codes
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny_lm import make_codec, make_encoder, state
from tiny_runs import contents, run_command, set_column
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    MusicgenForConditionalGeneration,
)

from common.config import Recipe, load_recipe
from common.errors import AttuneError
from training.checkpoint.load import load_for_inference
from training.interop.transfer import export, import_
from training.lm.patterns import delay
from training.run.folder import latest_checkpoint
from training.sampling.config import SamplingConfig
from training.sampling.decoder import DecodingWeights
from training.sampling.loop import sample_codes
from training.sampling.sampler import Sampler

PROMPTS = ["dog bark", "loud rain roof far away", "bell"]
FRAMES = 20
GREEDY = SamplingConfig(temperature=0.0, weights="fp32")


@pytest.fixture(scope="module", params=["bert", "t5"])
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Sampler, Any, Any]:
    """Our sampler, their model and tokenizer of the same run."""
    root = tmp_path_factory.mktemp(request.param)
    recipe, run = make_tiny_run(root, request.param)
    facts = export(str(run), root / "out")
    assert facts["max_new_tokens"] == FRAMES + 3
    theirs: Any = MusicgenForConditionalGeneration.from_pretrained(root / "out").eval()
    return Sampler.load(recipe, run), theirs, AutoTokenizer.from_pretrained(root / "out")


def _states(theirs: Any, sampler: Sampler, tokens: Any) -> Any:
    """Our encoder's states of their tokens, fp32: shards and sampling round them to fp16."""
    encoder = sampler.encoder._model
    with torch.inference_mode():
        return encoder(**tokens).last_hidden_state


def test_logits_equal_with_text_of_any_length_and_without(
    exported: tuple[Sampler, Any, Any],
) -> None:
    sampler, theirs, tokenizer = exported
    tokens = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    mask = tokens["attention_mask"].bool()
    assert len(mask.sum(dim=1).unique()) == 3
    generator = torch.Generator().manual_seed(2)
    codes = torch.randint(0, 16, (3, 4, FRAMES), generator=generator)
    inputs, _ = delay(codes, torch.full((3,), FRAMES), 16)
    with torch.inference_mode():
        told, _ = sampler.model(inputs, _states(theirs, sampler, tokens), mask)
        untold, _ = sampler.model(inputs)
        flat = inputs.flatten(0, 1)
        found = theirs(**tokens, decoder_input_ids=flat).logits.unflatten(0, (3, 4))
        nothing = theirs.get_unconditional_inputs(3)
        dropped = theirs(
            encoder_outputs=nothing["encoder_outputs"],
            attention_mask=nothing["attention_mask"],
            decoder_input_ids=flat,
        ).logits.unflatten(0, (3, 4))
    assert (told - untold).abs().mean() > 0.1
    torch.testing.assert_close(found.transpose(1, 2), told, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(dropped.transpose(1, 2), untold, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_greedy_codes_equal(exported: tuple[Sampler, Any, Any], guidance: float) -> None:
    sampler, theirs, tokenizer = exported
    tokens = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    states = _states(theirs, sampler, tokens)
    lengths = tokens["attention_mask"].sum(dim=1)
    ours = sample_codes(
        DecodingWeights(sampler.model),
        [s[:n].numpy() for s, n in zip(states, lengths, strict=True)],
        [0, 0, 0],
        FRAMES,
        SamplingConfig(temperature=0.0, cfg=guidance),
    )
    found = their_codes(theirs, tokenizer, PROMPTS, do_sample=False, guidance_scale=guidance)
    # T + K - 1 new tokens, which the export asks for, are all T frames of all K streams.
    assert found.shape == ours.shape == (3, 4, FRAMES)
    assert len(ours.unique()) > 6
    assert torch.equal(found, ours)


def test_fewer_new_tokens_are_fewer_frames_that_begin_alike(
    exported: tuple[Sampler, Any, Any],
) -> None:
    """`max_new_tokens=N` gives N - K + 1 frames: the delay takes the rest.

    In the last K - 1 steps streams that are complete are special tokens, which a longer clip hears
    codes instead of: stream k may differ in its last k frames.
    """
    _, theirs, tokenizer = exported
    whole = their_codes(theirs, tokenizer, PROMPTS, do_sample=False)
    short = their_codes(theirs, tokenizer, PROMPTS, do_sample=False, max_new_tokens=FRAMES)
    assert short.shape == (3, 4, FRAMES - 3)
    for k in range(4):
        assert torch.equal(short[:, k, : FRAMES - 3 - k], whole[:, k, : FRAMES - 3 - k])


_SCRIPT = """
import sys
import numpy as np
from transformers import pipeline

folder, out = sys.argv[1:]
play = pipeline("text-to-audio", folder)
drawn = play("dog bark")
greedy = play(["dog bark", "loud rain roof"], generate_kwargs={"do_sample": False}, batch_size=2)
dog, rain = (one["audio"] for one in greedy)
np.savez(out, drawn=drawn["audio"], rate=drawn["sampling_rate"], dog=dog, rain=rain)
loaded = {name.split(".")[0] for name in sys.modules}
assert not loaded & {"training", "common", "pipeline", "benchmarks"}
"""


def test_the_pipeline_plays_an_export_of_the_demos_shape_without_us(tmp_path: Path) -> None:
    """With the sizes of configs/demo.yaml, a process that only imports transformers plays our
    greedy waveforms."""
    demo = load_recipe(Path(__file__).parents[3] / "configs" / "demo.yaml")
    sizes = {key: demo.lm["model"][key] for key in ("d_model", "n_layers", "n_heads")}
    recipe, run = make_run(tmp_path, demo.codec.path, demo.text_encoder.path, **sizes)
    result = run_command("export", run, "--to", tmp_path / "out", "--json")
    assert json.loads(result.stdout)["step"] == 7
    (tmp_path / "script.py").write_text(_SCRIPT)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "script.py", "out", "sound.npz"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=200)
    heard = np.load(tmp_path / "sound.npz")
    assert heard["rate"] == 16000
    assert heard["drawn"].shape == heard["dog"].shape == (FRAMES * 320,)
    assert np.isfinite(heard["drawn"]).all() and heard["drawn"].std() > 1e-3
    sampler = Sampler.load(recipe, run)
    wavs, _ = sampler.generate(["dog bark", "loud rain roof"], 0.4, [0, 0], GREEDY)
    assert np.abs(wavs[0] - wavs[1]).max() > 1e-2
    np.testing.assert_allclose(heard["dog"], wavs[0], atol=1e-4)
    np.testing.assert_allclose(heard["rain"], wavs[1], atol=1e-4)


def test_the_processor_and_the_settings_are_complete(tmp_path: Path) -> None:
    _, run = make_tiny_run(tmp_path)
    export(str(run), tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor.feature_extractor.sampling_rate == 16000
    tokens = processor(text=["dog"], return_tensors="pt")
    assert set(tokens) == {"input_ids", "attention_mask"}
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    del settings["transformers_version"]
    assert settings == {
        "bos_token_id": 16,
        "decoder_start_token_id": 16,
        "do_sample": True,
        "guidance_scale": 3.0,
        "max_new_tokens": 23,
        "pad_token_id": 16,
        "temperature": 1.0,
        "top_k": 16,
    }
    for path in (tmp_path / "out").glob("*.json"):
        assert str(tmp_path) not in path.read_text(), path  # nothing of this machine


def test_top_p_goes_out_and_comes_in(tmp_path: Path) -> None:
    recipe, run = make_tiny_run(tmp_path)
    for temperature, expected in ((1.0, 0.9), (0.0, None)):
        sampling = {"top_p": 0.9, "temperature": temperature}
        out = tmp_path / f"out-{temperature}"
        export(str(run), out, recipe.model_copy(update={"sampling": sampling}))
        settings = json.loads((out / "generation_config.json").read_text())
        assert settings.get("top_p") == expected
        (out / "attune.json").unlink()  # as in a folder of others'
        import_(str(out), tmp_path / f"in-{temperature}")
        found = load_recipe(tmp_path / f"in-{temperature}" / "recipe.yaml").sampling
        assert found.get("top_p") == expected


def test_settings_that_musicgen_does_not_have_are_reported(tmp_path: Path) -> None:
    recipe, run = make_tiny_run(tmp_path)
    assert "note" not in export(str(run), tmp_path / "out", recipe)
    plain = (tmp_path / "out" / "README.md").read_text()
    sampling = {"negative_prompt": "rain |\n<b>", "cfg": 0.5}
    found = export(str(run), tmp_path / "out", recipe.model_copy(update={"sampling": sampling}))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "negative prompt is not exported" in found["note"] and "at least 1" in found["note"]
    for line in (
        r"The recipe's negative prompt is not exported, MusicGen takes none: rain \| &lt;b>.",
        "The recipe's guidance is 0.5, MusicGen's is at least 1: exported as 1.",
    ):
        assert f"\n{line}\n" in card and line not in plain


def test_average_by_default_raw_if_asked(tiny_run: Path, tmp_path: Path) -> None:
    checkpoint = latest_checkpoint(tiny_run)
    assert checkpoint is not None
    average = load_file(checkpoint / "model.safetensors")["head.weight"]
    raw = state(checkpoint)["model.head.weight"]
    assert not torch.equal(average, raw)
    run = tmp_path / "run" / tiny_run.name
    shutil.copytree(tiny_run, run)
    described = run / "checkpoints" / checkpoint.name / "model.json"
    described.write_text(json.dumps(json.loads(described.read_text()) | {"valid_loss": 2.5}))
    measured = {"checkpoint": f"{run}/checkpoints/{checkpoint.name} (step 12)"}
    report = {"models": {"rr": measured | {"agreement": {"rate": 0.8125}}}}
    (tmp_path / "run" / "report.json").write_text(json.dumps(report))
    for options, expected in (([], average), (["--raw"], raw)):
        run_command("export", run, "--to", tmp_path / "out", *options)
        weights = load_file(tmp_path / "out" / "model.safetensors")
        heads = torch.cat([weights[f"decoder.lm_heads.{k}.weight"] for k in range(4)])
        assert torch.equal(heads, expected)
        card = (tmp_path / "out" / "README.md").read_text()
        assert ("averaged (EMA)" in card) == (not options)
        # Validation loss and report belong to the average.
        assert ("| agreement.rate | 0.8125 |" in card) == (not options)
        assert ("validation loss" in card) == (not options)
        assert ("Nothing was measured of these weights" in card) == bool(options)
    # The checkpoint before it, by its folder.
    earlier = tiny_run / "checkpoints" / "step-00000010"
    assert export(str(earlier), tmp_path / "out")["step"] == 10


def test_the_card_lists_data_licences_metrics_and_the_form_of_prompts(
    tiny_root: Path, tiny_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_root / "data", tmp_path / "data")
    names = ["CC BY 4.0" if i % 3 else "CC0 | <b>" for i in range(24)]
    table = set_column(tmp_path / "data", "license", names)
    run = tmp_path / "run" / "lm"
    shutil.copytree(tiny_run, run)
    of_another = {"checkpoint": "runs/lm/checkpoints/step-00000010 (step 10)", "clap": 0.111}
    of_this = {
        "checkpoint": "runs/lm/checkpoints/step-00000012 (step 12)",
        "agreement": {"rate": 0.625, "hits": 3, "interval": [0.5, 0.9]},
    }
    report = {"models": {"before": of_another, "rr": of_this}}
    (tmp_path / "run" / "report.json").write_text(json.dumps(report))
    overrides = [f"run_dir={tmp_path / 'run'}", f"data_dir={tmp_path / 'data'}"]
    recipe = load_recipe(tiny_root / "recipe.yaml", overrides)
    export("lm", tmp_path / "out", recipe)
    card = (tmp_path / "out" / "README.md").read_text()
    rows = [row for row in table.to_pylist() if row["split"] == "train"]
    assert f"Plan `tiny`: {len(rows)} clips" in card
    even = sum(row["dataset"] == "even" for row in rows)
    assert f"| even | {even} | 0.00 | " in card
    assert "CC BY 4.0 (" in card and r"CC0 \| &lt;b> (" in card
    assert "| agreement.rate | 0.625 |" in card
    assert "| agreement.interval | [0.5, 0.9] |" in card
    assert "0.111" not in card
    assert "Instead of `A dog is barking at the park` say\n`dog bark park`" in card
    assert "representation regularization 3 (max pooling)" in card
    # Of another plan, or of shards that are gone, it says nothing.
    summary = tmp_path / "data" / "summary.json"
    summary.write_text(summary.read_text().replace('"tiny"', '"other"'))
    export("lm", tmp_path / "out", recipe)
    assert "plan other, trained on tiny" in (tmp_path / "out" / "README.md").read_text()
    shutil.rmtree(tmp_path / "data")
    export("lm", tmp_path / "out", recipe)
    assert "the shards could not be read" in (tmp_path / "out" / "README.md").read_text()


def test_a_failed_export_is_reported_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run = make_tiny_run(tmp_path)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("years")
    with pytest.raises(AttuneError, match="is not empty and is no earlier export"):
        export(str(run), taken)
    with pytest.raises(AttuneError, match="no trained model there"):
        export(str(tmp_path / "nothing"), tmp_path / "out")
    with pytest.raises(AttuneError, match=r"no raw ones"):
        export(str(run), tmp_path / "out", raw=True)
    make_codec(tmp_path / "other", seed=1)
    other = Recipe(**recipe.model_dump() | {"codec": {"path": str(tmp_path / "other")}})
    with pytest.raises(AttuneError, match="was trained with codec"):
        export(str(run), tmp_path / "out", other)
    with pytest.raises(AttuneError, match="needs --config"):
        run_command("export", run, "--to", tmp_path / "out", "seed=1")
    (run / "config.json").write_text("{}")  # as older runs have it
    with pytest.raises(AttuneError, match="name its recipe with --config"):
        export(str(run), tmp_path / "out")
    # A failure in the middle leaves neither the half nor the earlier one without its files.
    export(str(run), tmp_path / "out", recipe)
    before = contents(tmp_path / "out")
    (run / "checkpoints" / "step-00000007" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(AttuneError, match="cannot be loaded"):
        export(str(run), tmp_path / "out", recipe)
    assert contents(tmp_path / "out") == before
    shutil.rmtree(tmp_path / "out")

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    weights = random_model(recipe, 0.4)[0].state_dict()
    save_file(weights, run / "checkpoints" / "step-00000007" / "model.safetensors")
    monkeypatch.setattr(MusicgenForConditionalGeneration, "save_pretrained", full)
    with pytest.raises(AttuneError, match=r"out: cannot be written: .*No space left"):
        export(str(run), tmp_path / "out", recipe)
    assert not (tmp_path / "out").exists()
    assert (taken / "thesis.txt").read_text() == "years"
    assert not list(tmp_path.glob("*.partial*")) and not list(tmp_path.glob("*.old"))


def test_encoders_that_their_library_cannot_hold_are_refused(tmp_path: Path) -> None:
    make_codec(tmp_path / "codec")
    make_encoder(tmp_path / "tokenizer")
    encoder = tmp_path / "encoder"
    GPT2Model(GPT2Config(vocab_size=30522, n_embd=24, n_layer=1, n_head=2)).save_pretrained(encoder)
    AutoTokenizer.from_pretrained(tmp_path / "tokenizer").save_pretrained(encoder)
    _, run = make_run(tmp_path, str(tmp_path / "codec"), str(encoder))
    with pytest.raises(AttuneError, match="cannot load a GPT2Model inside"):
        export(str(run), tmp_path / "out")


def test_a_projection_between_equal_widths_is_refused_unless_it_changes_nothing(
    tmp_path: Path,
) -> None:
    make_codec(tmp_path / "codec")
    make_t5(tmp_path / "encoder", 24)
    _, run = make_run(tmp_path, str(tmp_path / "codec"), str(tmp_path / "encoder"), d_model=24)
    with pytest.raises(AttuneError, match=r"equally wide \(24\).*another lm\.model\.d_model"):
        export(str(run), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    checkpoint = latest_checkpoint(run)
    assert checkpoint is not None
    model, _ = load_for_inference(checkpoint)
    with torch.no_grad():
        model.text_projection.weight.copy_(torch.eye(24))
        model.text_projection.bias.zero_()
    save_file(model.state_dict(), checkpoint / "model.safetensors")
    export(str(run), tmp_path / "out")


def test_a_pooler_that_nobody_trained_is_not_random(tmp_path: Path) -> None:
    _, run = make_tiny_run(tmp_path)
    encoder = tmp_path / "encoder"
    # Without a pooler the file is another encoder: a new run over it.
    config = BertConfig.from_pretrained(encoder)
    BertModel(config, add_pooling_layer=False).save_pretrained(encoder)
    shutil.rmtree(run)
    _, run = make_run(tmp_path, str(tmp_path / "codec"), str(encoder))
    export(str(run), tmp_path / "a")
    export(str(run), tmp_path / "b")
    one, two = ((tmp_path / n / "model.safetensors").read_bytes() for n in "ab")
    assert one == two
