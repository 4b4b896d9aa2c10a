"""Sampling: the cache changes nothing, a clip depends only on its prompt and seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from random_run import padded, text_states
from tiny_lm import make_codec
from tiny_runs import run_command

from common.config import Recipe, load_recipe
from common.errors import AttuneError
from common.shards import ShardDataset
from training.checkpoint.load import load_for_inference
from training.lm.model import LanguageModel
from training.lm.patterns import delay
from training.run.folder import latest_checkpoint
from training.sampling import sampler as generate
from training.sampling.config import DRAWS, SamplingConfig
from training.sampling.decoder import Decoder, DecodingWeights
from training.sampling.loop import sample_codes
from training.sampling.packed import Kind
from training.sampling.sampler import Sampler, draw_key
from training.train import train

SPECIAL = 40


def test_cached_steps_equal_one_full_forward_with_and_without_text(
    model: LanguageModel, weights: DecodingWeights
) -> None:
    states = text_states(4, 2)
    codes = torch.randint(0, 40, (2, 3, 7), generator=torch.Generator().manual_seed(0))
    inputs, _ = delay(codes, torch.tensor([7, 7]), SPECIAL)
    told, _ = model(inputs, *padded(states))
    untold, _ = model(inputs)
    decoder = Decoder(weights, states, inputs.shape[2], guided=True)
    with torch.inference_mode():
        for step in range(inputs.shape[2]):
            found = decoder.step(inputs[:, :, step])
            expected = torch.cat([told[:, step], untold[:, step]])
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_seed_and_prompt_both_matter_and_a_longer_clip_begins_alike(
    weights: DecodingWeights,
) -> None:
    one, two = text_states(3, 3)
    plain = SamplingConfig()
    base = sample_codes(weights, [one], [1], 20, plain)
    assert not torch.equal(base, sample_codes(weights, [one], [2], 20, plain))
    assert not torch.equal(base, sample_codes(weights, [two], [1], 20, plain))
    longer = sample_codes(weights, [one], [1], 30, plain)
    # In its last steps the shorter clip has streams that are complete; until then they are equal.
    for k in range(3):
        assert torch.equal(longer[:, k, : 20 - k], base[:, k, : 20 - k])


def test_guidance_one_is_plain_conditional_and_zero_is_unconditional(
    model: LanguageModel, weights: DecodingWeights
) -> None:
    """Greedy codes of each, against argmax over full forwards."""
    states = text_states(5)
    for coefficient in (0.0, 1.0, 3.0):
        sampling = SamplingConfig(cfg=coefficient, temperature=0.0)
        codes = sample_codes(weights, states, [0], 12, sampling)
        inputs, targets = delay(codes, torch.tensor([12]), SPECIAL)
        told, untold = model(inputs, *padded(states))[0], model(inputs)[0]
        best = (untold + coefficient * (told - untold)).argmax(-1).transpose(1, 2)
        valid = targets >= 0
        assert torch.equal(best[valid], targets[valid])


def test_a_trained_run_speaks(tiny_recipe: Recipe, tiny_run: Path) -> None:
    sampler = Sampler.load(tiny_recipe, tiny_run)
    exact = SamplingConfig(weights="fp32")
    wavs, codes = sampler.generate(["a dog is barking", "rain"], 0.4, [1, 2], exact)
    assert [wav.shape for wav in wavs] == [(6400,), (6400,)]
    assert codes.shape == (2, 4, 20)
    assert codes.dtype == np.int16
    again, _ = sampler.generate(["rain"], 0.4, [2], exact)
    np.testing.assert_allclose(again[0], wavs[1], atol=1e-5)
    small = SamplingConfig(batch_size=1, weights="fp32")
    steps: list[tuple[int, int]] = []
    _, singly = sampler.generate(
        ["the dogs are barking", "rain"], 0.4, [1, 2], small, lambda *s: steps.append(s)
    )
    np.testing.assert_array_equal(singly, codes)
    assert steps == [(i + 1, 46) for i in range(46)]


def test_prompts_in_training_form_are_taken_as_they_are(
    tiny_recipe: Recipe, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = Sampler.load(tiny_recipe, tiny_run)
    asked: list[str] = []
    encode = sampler.encoder.encode
    monkeypatch.setattr(
        sampler.encoder, "encode", lambda texts: asked.extend(texts) or encode(texts)
    )
    sampler.generate(["Barking dogs"], 0.1, [0])
    sampler.generate(["Barking dogs"], 0.1, [0], normalized=True)
    assert asked == ["bark dog", "Barking dogs"]
    asked.clear()
    away = SamplingConfig(negative_prompt="Songs")
    sampler.generate(["The dogs"], 0.1, [0], away)
    sampler.generate(["The dogs"], 0.1, [0], away, normalized=True)
    sampler.generate(["The dogs"], 0.1, [0], away, as_is=True)
    assert asked == ["song", "dog", "song", "The dogs", "Songs", "The dogs"]
    with pytest.raises(AttuneError, match=r"list.txt:3: prompt 'the': nothing remains"):
        sampler.normalize(["rain", "the"], sources=["list.txt:1", "list.txt:3"])
    with pytest.raises(AttuneError, match="nothing remains"):
        sampler.normalize([" "], as_is=True)


def test_prompt_and_seed_decide_the_draws(tiny_recipe: Recipe, tiny_run: Path) -> None:
    sampler = Sampler.load(tiny_recipe, tiny_run)
    # Without guidance by text, clips only differ by their draws.
    deaf = SamplingConfig(cfg=0.0)
    _, codes = sampler.generate(["rain", "dog", "the dogs"], 0.4, [1, 1, 1], deaf)
    assert not np.array_equal(codes[0], codes[1])
    assert np.array_equal(codes[1], codes[2])
    # The key stays the same from one process to the next.
    assert draw_key(1, "rain") == (1, 16087700009325496637)


def test_mistakes_are_reported_in_one_line(tiny_root: Path, tiny_run: Path, tmp_path: Path) -> None:
    recipe = load_recipe(tiny_root / "recipe.yaml")
    sampler = Sampler.load(recipe, tiny_run)
    with pytest.raises(AttuneError, match=r"'the 3': nothing remains"):
        sampler.generate(["the 3"], 0.4, [0])
    with pytest.raises(AttuneError, match=r"to continue is 0\.4 s long and the duration 0\.4 s"):
        sampler.generate(["dog"], 0.4, [0], continue_from=np.zeros(6400, np.float32))
    with pytest.raises(AttuneError, match="to continue is empty"):
        sampler.generate(["dog"], 0.4, [0], continue_from=np.zeros(0, np.float32))
    # If segments are longer than all clips, the longest training clip counts.
    sampler.description |= {"segment_s": 9.0, "trained_s": 0.571}
    assert sampler.trained_s == 0.58
    with pytest.raises(AttuneError, match="no trained model there"):
        Sampler.load(recipe, tmp_path / "nothing")
    make_codec(tmp_path / "codec", seed=1)
    other = load_recipe(tiny_root / "recipe.yaml", [f"codec.path={tmp_path / 'codec'}"])
    with pytest.raises(AttuneError, match="was trained with codec"):
        Sampler.load(other, tiny_run)
    other = load_recipe(tiny_root / "recipe.yaml", ["text_encoder.max_length=15"])
    with pytest.raises(AttuneError, match="was trained with text encoder"):
        Sampler.load(other, tiny_run)


def test_a_checkpoint_describes_its_training(
    tiny_root: Path, tiny_run: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(
        tiny_root / "recipe.yaml", [f"run_dir={tmp_path}", "lm.steps=3", "lm.segment_s=9"]
    )
    checkpoint = latest_checkpoint(train(recipe))
    assert checkpoint is not None
    manifest = ShardDataset.open(recipe.data_dir).manifest.to_pylist()
    longest = max(row["frames"] for row in manifest if row["split"] == "train")
    assert load_for_inference(checkpoint)[1]["trained_s"] == longest / 50
    described = json.loads((checkpoint / "model.json").read_text())
    del described["codec_id"]
    (checkpoint / "model.json").write_text(json.dumps(described))
    with pytest.raises(AttuneError, match=r"model\.json lacks codec_id"):
        Sampler.load(recipe, tmp_path / "lm")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--duration", "nan"), "--duration nan: expected"),
        (("--duration", "-1"), "--duration -1: expected"),
        (("--device", "warp"), "--device warp: not available"),
        (("--out", "{file}"), "{file}: not a folder"),
        (("--out", "{file}/below"), "below a file"),
    ],
)
def test_command_refuses_before_loading_anything(
    tiny_root: Path, tmp_path: Path, option: tuple[str, str], words: str
) -> None:
    file = tmp_path / "file"
    file.touch()
    command = ["generate", "--config", tiny_root / "recipe.yaml", "--prompt", "dog"]
    with pytest.raises(AttuneError) as refused:
        run_command(*command, "--run", "none", option[0], option[1].format(file=file))
    assert words.format(file=file) in str(refused.value)


def test_auto_is_settled_by_how_many_are_made_at_a_time(
    tiny_recipe: Recipe, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One kind for all batches of a command, the last one of a single clip too."""
    # Whatever this processor's default is.
    monkeypatch.setattr(generate, "default_kind", lambda _, clips: "int8" if clips == 1 else "bf16")
    sampler = Sampler.load(tiny_recipe, tiny_run)
    made: list[str] = []
    whole = DecodingWeights.__init__

    def listen(self: DecodingWeights, model: LanguageModel, kind: Kind = "fp32") -> None:
        made.append(kind)
        whole(self, model, kind)

    monkeypatch.setattr(DecodingWeights, "__init__", listen)
    rain, plain = ["rain"] * 3, SamplingConfig()
    two = SamplingConfig(batch_size=2)
    single = SamplingConfig(batch_size=1)
    sampler.generate(rain, 0.1, [1, 2, 3], two)
    assert made == ["bf16"]
    sampler.generate(rain, 0.1, [1, 2, 3], single)
    assert made == ["bf16", "int8"]
    list(sampler.stream(rain, 0.1, [1, 2, 3], single))  # together, whatever batch_size says
    sampler.generate(rain[:1], 0.1, [1], plain)
    assert made == ["bf16", "int8", "bf16", "int8"]
    assert sampler.settled(plain, 1).weights == "int8"
    assert sampler.settled(SamplingConfig(weights="fp32"), 1).weights == "fp32"
    assert sampler.facts(sampler.settled(plain, 3))["weights"] == "bf16"
    assert sampler.facts(plain)["draws"] == DRAWS
