"""MusicGen-shaped folders as runs of ours: logits, codes, the way back, fine-tuning."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_run import make_t5, make_tiny_run, their_codes
from released_codec import SMALL, make_codec, released_names
from safetensors.torch import load_file, save_file
from tiny_lm import make_codec as make_tiny_codec
from tiny_lm import make_shards
from tiny_runs import contents, names_in, run_command, train_tiny, without_clock
from transformers import (
    AutoTokenizer,
    EncodecFeatureExtractor,
    GenerationConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForCausalLM,
    MusicgenForConditionalGeneration,
    MusicgenProcessor,
    T5EncoderModel,
)

from common.codec import codec_identity, load_codec
from common.config import load_recipe
from common.errors import AttuneError
from common.shards import ShardDataset
from pipeline.config import PipelineConfig
from training.checkpoint.load import load_for_inference
from training.config import LMConfig
from training.data import ClipOrder, Loader
from training.interop.musicgen import architecture, decoder_config, to_musicgen
from training.interop.transfer import export, import_
from training.lm.losses import stream_losses
from training.lm.model import LanguageModel
from training.lm.patterns import delay
from training.run.folder import latest_checkpoint
from training.sampling.config import SamplingConfig
from training.sampling.decoder import DecodingWeights
from training.sampling.loop import sample_codes
from training.sampling.sampler import Sampler

PROMPTS = ["dog bark", "loud rain roof far away", "bell"]

FRAMES = 17
GREEDY = SamplingConfig(temperature=0.0, weights="fp32")


def make_musicgen(folder: Path, width: int = 48) -> Any:
    """A random model of `facebook/musicgen-small`'s make, smaller: T5, EnCodec at 32 kHz."""
    encoder = T5EncoderModel.from_pretrained(make_t5(folder.with_name("t5")))
    codec = make_codec(**SMALL)
    decoder = MusicgenDecoderConfig(
        vocab_size=64,
        hidden_size=width,
        num_hidden_layers=3,
        ffn_dim=4 * width,
        num_attention_heads=4,
        pad_token_id=64,
        bos_token_id=64,
    )
    config = MusicgenConfig(
        text_encoder=encoder.config, audio_encoder=codec.config, decoder=decoder
    )
    model: Any = MusicgenForConditionalGeneration(
        config, text_encoder=encoder, audio_encoder=codec, decoder=MusicgenForCausalLM(decoder)
    ).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for part in (model.decoder, getattr(model, "enc_to_dec_proj", torch.nn.Identity())):
            for parameter in part.parameters():
                parameter.normal_(std=0.3, generator=generator)
    model.generation_config = GenerationConfig(
        do_sample=True,
        guidance_scale=3.0,
        max_length=1500,
        pad_token_id=64,
        bos_token_id=64,
        decoder_start_token_id=64,
    )
    model.save_pretrained(folder)
    MusicgenProcessor(
        feature_extractor=EncodecFeatureExtractor(feature_size=1, sampling_rate=32000),
        tokenizer=AutoTokenizer.from_pretrained(folder.with_name("t5")),
    ).save_pretrained(folder)
    # As it was put together it has no attention implementation, and T5 then hears its padding.
    return MusicgenForConditionalGeneration.from_pretrained(folder).eval()


def as_released(folder: Path) -> None:
    """Rewrite the weights as the released files have them: older names, positions, half floats."""
    weights = released_names(load_file(folder / "model.safetensors"))
    weights["decoder.model.decoder.embed_positions.weights"] = torch.zeros(2048, 48)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module", params=["projection", "equal widths"])
def imported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Any, Path]:
    """Their model and tokenizer, and the folder of ours."""
    root = tmp_path_factory.mktemp("imported")
    theirs = make_musicgen(root / "theirs", 48 if request.param == "projection" else 24)
    assert hasattr(theirs, "enc_to_dec_proj") == (request.param == "projection")
    if request.param == "projection":
        as_released(root / "theirs")
    facts = import_(str(root / "theirs"), root / "ours")
    assert facts["prompt_policy"] == "plain"
    assert facts["longest_s"] == 30
    return theirs, AutoTokenizer.from_pretrained(root / "theirs"), root / "ours"


def _sampler(folder: Path) -> Sampler:
    return Sampler.load(load_recipe(folder / "recipe.yaml"), folder / "imported")


def test_logits_equal_with_text_of_any_length_and_without(
    imported: tuple[Any, Any, Path],
) -> None:
    theirs, tokenizer, folder = imported
    sampler = _sampler(folder)
    tokens = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    generator = torch.Generator().manual_seed(2)
    codes = torch.randint(0, 64, (3, 4, FRAMES), generator=generator)
    inputs, _ = delay(codes, torch.full((3,), FRAMES), 64)
    with torch.inference_mode():
        flat = inputs.flatten(0, 1)
        expected = theirs(**tokens, decoder_input_ids=flat).logits.unflatten(0, (3, 4))
        states = sampler.encoder._model(**tokens).last_hidden_state
        torch.testing.assert_close(states, theirs.text_encoder(**tokens).last_hidden_state)
        found, _ = sampler.model(inputs, states, tokens["attention_mask"].bool())
        untold, _ = sampler.model(inputs)
        dropped = theirs(
            encoder_outputs=(torch.zeros_like(states),),
            attention_mask=torch.zeros_like(tokens["attention_mask"]),
            decoder_input_ids=flat,
        ).logits.unflatten(0, (3, 4))
    assert (found - untold).abs().mean() > 0.05
    torch.testing.assert_close(found.transpose(1, 2), expected, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(untold.transpose(1, 2), dropped, atol=2e-4, rtol=1e-4)


def test_greedy_codes_and_waveforms_equal(imported: tuple[Any, Any, Path]) -> None:
    theirs, tokenizer, folder = imported
    sampler = _sampler(folder)
    found = their_codes(theirs, tokenizer, PROMPTS, do_sample=False, max_new_tokens=FRAMES + 3)
    tokens = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    lengths = tokens["attention_mask"].sum(dim=1)
    with torch.inference_mode():
        states = sampler.encoder._model(**tokens).last_hidden_state
    states = [s[:n].numpy() for s, n in zip(states, lengths, strict=True)]
    ours = sample_codes(DecodingWeights(sampler.model), states, [0, 0, 0], FRAMES, GREEDY)
    assert len(ours.unique()) > 10
    assert torch.equal(found, ours)
    # By way of prompts, where states are rounded to fp16 as in shards: the same waveforms.
    wavs, codes = sampler.generate(PROMPTS, FRAMES / 50, [0, 0, 0], GREEDY)
    assert np.array_equal(codes, ours.numpy())
    with torch.inference_mode():
        expected = theirs.audio_encoder.decode(found[None], [None]).audio_values[:, 0].numpy()
    for wav, their_wav in zip(wavs, expected, strict=True):
        np.testing.assert_allclose(wav, their_wav, atol=1e-4)


def test_the_way_back_is_lossless(imported: tuple[Any, Any, Path], tmp_path: Path) -> None:
    """Theirs, ours, theirs: every weight to the bit, and every configured number."""
    theirs, _, folder = imported
    export(str(folder / "imported"), tmp_path / "back")
    card = (tmp_path / "back" / "README.md").read_text()
    assert f"The weights were imported from {folder.with_name('theirs')}: see there." in card
    assert "The prompts of the training data are as they were written" in card
    back: Any = MusicgenForConditionalGeneration.from_pretrained(tmp_path / "back")
    expected, found = theirs.state_dict(), back.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    one, two = (config.to_dict() for config in (theirs.config, back.config))
    for key in ("hidden_size", "num_hidden_layers", "ffn_dim", "num_attention_heads", "vocab_size"):
        assert one["decoder"][key] == two["decoder"][key]
    assert one["audio_encoder"]["upsampling_ratios"] == two["audio_encoder"]["upsampling_ratios"]


def test_a_run_goes_out_and_comes_back_as_it_was(tmp_path: Path) -> None:
    """Ours, theirs, ours: weights, what `model.json` says, waveforms, and the export after it."""
    recipe, run = make_tiny_run(tmp_path)
    export(str(run), tmp_path / "out")
    codec, encoder = recipe.codec.path, recipe.text_encoder.path
    import_(str(tmp_path / "out"), tmp_path / "copies")
    import_(str(tmp_path / "out"), tmp_path / "same", codec=codec, text_encoder=encoder)
    checkpoint = latest_checkpoint(run)
    assert checkpoint is not None
    weights, described = load_for_inference(checkpoint)
    before, _ = Sampler.load(recipe, run).generate(PROMPTS, 0.4, [1, 2, 3])
    for name in ("copies", "same"):
        found = latest_checkpoint(tmp_path / name / "imported")
        assert found is not None and found.name == checkpoint.name
        model, again = load_for_inference(found)
        pairs = zip(weights.parameters(), model.parameters(), strict=True)
        assert all(torch.equal(one, two) for one, two in pairs)
        for key in ("architecture", "prompt_policy", "trained_s", "segment_s", "step"):
            assert again[key] == described[key]
        after, _ = _sampler(tmp_path / name).generate(PROMPTS, 0.4, [1, 2, 3])
        for one, two in zip(before, after, strict=True):
            assert np.array_equal(one, two)
        # With its own codec and encoder named, shards made with them still fit.
        kept = again["text_encoder_id"] == described["text_encoder_id"]
        assert kept == (name == "same")
        assert again["codec_id"] == described["codec_id"]
        assert load_recipe(tmp_path / name / "recipe.yaml").text_encoder.max_length == 16
    export(str(tmp_path / "same" / "imported"), tmp_path / "again")
    for name in ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json"):
        one, two = ((tmp_path / folder / name).read_bytes() for folder in ("out", "again"))
        assert one == two, name


def test_a_damaged_record_is_refused_and_may_be_deleted(tmp_path: Path) -> None:
    _, run = make_tiny_run(tmp_path)
    export(str(run), tmp_path / "out")
    path = tmp_path / "out" / "attune.json"
    record = json.loads(path.read_text())
    for damage in (
        {"description": record["description"] | {"step": "../7"}},
        {"description": record["description"] | {"prompt_policy": "loud"}},
        {"description": record["description"] | {"trained_s": -1}},
        {"max_length": "many"},
        {"sampling": {"cfg": "strong"}},
    ):
        path.write_text(json.dumps(record | damage))
        with pytest.raises(AttuneError, match=r"attune\.json: damaged: .*delete this file"):
            import_(str(tmp_path / "out"), tmp_path / "ours")
    path.unlink()
    import_(str(tmp_path / "out"), tmp_path / "ours")
    found = latest_checkpoint(tmp_path / "ours" / "imported")
    assert found is not None and found.name == "step-00000000"
    described = load_for_inference(found)[1]
    assert (described["prompt_policy"], described["trained_s"]) == ("plain", 0.4)
    recipe = load_recipe(tmp_path / "ours" / "recipe.yaml")
    assert (recipe.text_encoder.max_length, recipe.sampling["cfg"]) == (16, 3.0)


def test_generate_works_at_once(
    imported: tuple[Any, Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, folder = imported
    monkeypatch.chdir(folder.parent)
    command = ["generate", "--config", folder / "recipe.yaml", "--prompt", "loud  bell"]
    (made,) = json.loads(run_command(*command, "--duration", 0.1, "--json").stdout)
    assert made["normalized_prompt"] == "loud bell"  # as it was written
    assert (made["sample_rate"], made["duration_s"], made["cfg"]) == (32000, 0.1, 3.0)


def test_only_the_codec_inside(imported: tuple[Any, Any, Path], tmp_path: Path) -> None:
    theirs, _, folder = imported
    source = folder.with_name("theirs")
    command = ["import", source, "--to", tmp_path / "codec", "--only", "codec", "--json"]
    result = run_command(*command)
    assert json.loads(result.stdout)["codec_id"] == codec_identity(str(folder / "codec"))
    ours = load_codec(str(tmp_path / "codec"))
    wav = torch.randn(1, 9000, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = theirs.audio_encoder.encode(wav[:, None]).audio_codes[0]
    assert torch.equal(ours.encode(wav), expected)


def test_released_sizes_have_the_released_names_and_shapes() -> None:
    """Of musicgen-small, -medium and -large, without their memory."""
    for width, layers, heads in ((1024, 24, 16), (1536, 48, 24), (2048, 48, 32)):
        config = MusicgenDecoderConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            ffn_dim=4 * width,
        )
        arch = architecture(config, 768, "released")
        with torch.device("meta"):
            theirs = MusicgenForCausalLM(config).state_dict()
            ours = to_musicgen(LanguageModel(arch).state_dict(), arch)
        found = {k: v.shape for k, v in ours.items() if k.startswith("decoder.")}
        assert found == {f"decoder.{name}": value.shape for name, value in theirs.items()}
        again = decoder_config(arch)
        for key in ("hidden_size", "num_hidden_layers", "ffn_dim", "vocab_size", "pad_token_id"):
            assert getattr(again, key) == getattr(config, key)


def test_the_recipe_is_made_for_fine_tuning(imported: tuple[Any, Any, Path]) -> None:
    _, _, folder = imported
    recipe = load_recipe(folder / "recipe.yaml")
    source = folder.with_name("theirs")
    assert recipe.name == "theirs"
    assert f"# Imported from {source}." in (folder / "recipe.yaml").read_text()
    config = recipe.section("lm", LMConfig)
    assert (config.steps, config.batch_size, config.optim.lr) == (2000, 16, 3e-5)
    assert config.optim.warmup == 100 and config.model.d_model in (24, 48)
    # The prompt policy is the model's; the catalogs are still to be named.
    with pytest.raises(AttuneError, match=r"missing key 'pipeline\.catalogs'"):
        recipe.section("pipeline", PipelineConfig)
    catalogs = "pipeline.catalogs=[{dataset: audiofolder, root: /sounds, name: own}]"
    added = load_recipe(folder / "recipe.yaml", [catalogs])
    assert added.section("pipeline", PipelineConfig).prompt_form.policy == "plain"


def test_other_models_are_refused_in_one_line(tmp_path: Path) -> None:
    good = tmp_path / "good"
    make_musicgen(good)

    def changed(name: str, decoder: dict[str, Any], **edit: Any) -> Path:
        folder = tmp_path / name
        shutil.copytree(good, folder)
        config = json.loads((folder / "config.json").read_text())
        config |= edit.get("config", {})
        config["decoder"] |= decoder
        (folder / "config.json").write_text(json.dumps(config))
        if "weights" in edit:
            weights = load_file(folder / "model.safetensors")
            edit["weights"](weights)
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    bias = "decoder.model.decoder.layers.0.fc1.bias"
    head = "decoder.lm_heads.0.weight"
    no_tokenizer = changed("no-tokenizer", {})
    for path in no_tokenizer.glob("tokenizer*"):
        path.unlink()
    cases = [
        (changed("stereo", {"audio_channels": 2}), "audio_channels is 2; only 1 is supported"),
        (changed("relu", {"activation_function": "relu"}), "is 'relu'; only 'gelu'"),
        (changed("scaled", {"scale_embedding": True}), "scale_embedding is True; only False"),
        (changed("odd", {"ffn_dim": 190}), "ffn_dim 190 is not a multiple of hidden_size 48"),
        (changed("deep", {"num_hidden_layers": 4}), "lacks 16 weights"),
        (changed("streams", {"num_codebooks": 5}), "lacks 2 weights"),
        (changed("vocabulary", {"vocab_size": 63}), "pad_token_id is 64; only 63"),
        (
            changed("bias", {}, weights=lambda w: w.update({bias: torch.zeros(192)})),
            "has unknown 1 weights",
        ),
        (
            changed("cut", {}, weights=lambda w: w.update({head: w[head][:9].clone()})),
            r"decoder\.lm_heads\.0\.weight is \(9, 48\)",
        ),
        (
            changed("deaf", {}, weights=lambda w: [
                w.pop(k) for k in list(w) if k.startswith("text_encoder.encoder.final")
            ]),
            "text encoder lacks 1 weights",
        ),
        (changed("melody", {}, config={"model_type": "musicgen_melody"}), "model_type 'musicgen_m"),
        (no_tokenizer, "holds no tokenizer"),
    ]  # fmt: skip
    before = names_in(tmp_path)
    for source, words in cases:
        with pytest.raises(AttuneError, match=words):
            import_(str(source), tmp_path / "out")
    make_tiny_codec(tmp_path / "codec")
    with pytest.raises(AttuneError, match=r"codec .*codec: is not the one inside"):
        import_(str(good), tmp_path / "out", codec=str(tmp_path / "codec"))
    with pytest.raises(AttuneError, match=r"text encoder .*other: is not the one inside"):
        make_t5(tmp_path / "other", 16)
        import_(str(good), tmp_path / "out", text_encoder=str(tmp_path / "other"))
    assert sorted({*names_in(tmp_path)} - {"codec", "other"}) == before


@pytest.fixture(scope="module")
def tunable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An imported model with shards made by its codec and text encoder."""
    root = tmp_path_factory.mktemp("tunable")
    recipe, run = make_tiny_run(root)
    export(str(run), root / "out")
    paths = {"codec": recipe.codec.path, "text_encoder": recipe.text_encoder.path}
    import_(str(root / "out"), root / "imported", **paths)
    shutil.rmtree(run)
    make_shards(root, 24)
    return root


def _tune(root: Path, to: Path, *overrides: str, **options: Any) -> list[dict[str, Any]]:
    paths = [f"data_dir={root / 'data'}", f"lm.init_from={root / 'imported' / 'imported'}"]
    sizes = ["lm.batch_size=4", "lm.steps=6", "lm.optim.warmup=2", "lm.checkpoint_every=3"]
    others = ["lm.run=tuned", "lm.precision=fp32", "lm.log_every=1", "lm.threads=1"]
    return train_tiny(root / "imported", to, *paths, *sizes, *others, *overrides, **options)


def test_fine_tuning_begins_with_the_imported_weights_and_rr_acts(
    tunable: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = _tune(tunable, tmp_path, "lm.cfg.dropout=0", "lm.rr.weight=0")
    assert "starts from the weights of" in capsys.readouterr().out
    checkpoint = latest_checkpoint(tunable / "imported" / "imported")
    assert checkpoint is not None
    model, _ = load_for_inference(checkpoint)
    dataset = ShardDataset.open(tunable / "data")
    batch = Loader(
        dataset, ClipOrder(dataset, "train", 0), segment_s=10.0, seed=0, batch_size=4
    ).batch(0)
    inputs, targets = delay(batch.codes, batch.lengths, 16)
    sums, counts = stream_losses(model(inputs, batch.text, batch.text_mask)[0], targets)
    assert rows[0]["loss"] == pytest.approx(float((sums / counts).mean()), rel=1e-5)
    config = json.loads((tmp_path / "tuned" / "config.json").read_text())
    assert config["lm"]["init_from"] == str(tunable / "imported" / "imported")
    scratch = _tune(tunable, tmp_path, "lm.run=scratch", "lm.init_from=''", "lm.rr.weight=0")
    assert scratch[0]["loss"] != rows[0]["loss"]
    with_rr = _tune(tunable, tmp_path, "lm.run=rr", "lm.cfg.dropout=0.5")
    assert [row["rr"] > 0 for row in with_rr if "rr" in row] and with_rr[-1]["step"] == 6


def test_a_run_resumes_exactly_and_without_the_model_it_began_with(
    tunable: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(tunable / "imported" / "imported", source)
    began = [f"lm.init_from={source}"]
    whole = _tune(tunable, tmp_path, *began)
    run = tmp_path / "tuned"
    final = load_file(run / "checkpoints" / "step-00000006" / "model.safetensors")
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    (run / "latest").write_text("step-00000003\n")
    shutil.rmtree(source)
    again = _tune(tunable, tmp_path, *began)
    assert without_clock(again) == without_clock(whole)
    resumed = load_file(run / "checkpoints" / "step-00000006" / "model.safetensors")
    assert all(torch.equal(final[name], resumed[name]) for name in final)
    with pytest.raises(AttuneError, match=r"was started with lm\.init_from"):
        _tune(tunable, tmp_path, "lm.init_from=''")
    # To start over, the run needs them.
    with pytest.raises(AttuneError, match=r"lm\.init_from: .*no trained model there"):
        _tune(tunable, tmp_path, *began, fresh=True)
    assert (run / "latest").read_text() == "step-00000006\n"


def test_other_architectures_are_refused_and_other_codecs_reported(
    tunable: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AttuneError) as refused:
        _tune(tunable, tmp_path, "lm.model.n_layers=3", "lm.model.n_heads=2")
    told = str(refused.value)
    assert "n_layers 2 there and 3 here (lm.model.n_layers)" in told
    assert "n_heads 4 there and 2 here (lm.model.n_heads)" in told
    assert not (tmp_path / "tuned").exists()
    source = tmp_path / "source"
    shutil.copytree(tunable / "imported" / "imported", source)
    (path,) = source.glob("checkpoints/*/model.json")
    known = json.loads(path.read_text())
    policy = ShardDataset.open(tunable / "data").summary.get("prompt_policy", "lemmas")
    other = "plain" if policy == "lemmas" else "lemmas"
    path.write_text(json.dumps(known | {"codec_id": "another", "prompt_policy": other}))
    _tune(tunable, tmp_path, f"lm.init_from={path.parent}", "lm.steps=3")
    told = capsys.readouterr().err
    assert "was trained with codec another, the shards were made with" in told
    assert (
        f"was trained with prompts by policy {other}, the shards were made with {policy} "
        "(pipeline.text.policy)" in told
    )
    path.write_text(json.dumps(known | {"prompt_policy": policy}))
    _tune(tunable, tmp_path, f"lm.init_from={path.parent}", "lm.steps=3", fresh=True)
    assert "was trained with" not in capsys.readouterr().err


@pytest.mark.parametrize("fresh", [False, True])
def test_an_imported_model_is_not_trained_over(tunable: Path, fresh: bool) -> None:
    run = tunable / "imported" / "imported"
    before = contents(run)
    with pytest.raises(AttuneError, match=r"holds an imported model.*lm\.init_from="):
        _tune(tunable, tunable / "imported", "lm.run=imported", "lm.init_from=''", fresh=fresh)
    assert contents(run) == before
    with pytest.raises(AttuneError, match="holds an imported model, which was not trained here"):
        run_command("lm", "--config", tunable / "imported" / "recipe.yaml", "--status")
