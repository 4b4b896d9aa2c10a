"""Codec training: it learns, it resumes exactly, what it saves is what was trained."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.codec import load_codec
from common.config import load_recipe
from common.errors import AttuneError
from training.codec import train as codec_train
from training.codec.config import CodecTrainingConfig
from training.codec.data import load_clips, segment_batch
from training.codec.losses import MultiScaleMelLoss, si_sdr

QUIET = Console(quiet=True)


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for folder in ("train", "held_out"):
        (tmp_path / folder).mkdir()
        for index in range(4):
            t = np.arange(16_000) / 16_000
            wave = 0.3 * np.sin(2 * np.pi * rng.uniform(200, 800) * t)
            soundfile.write(tmp_path / folder / f"{index}.wav", wave, 16_000)
    (tmp_path / "train" / "broken.wav").write_bytes(b"")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"""
name: test
run_dir: {tmp_path}
data_dir: {tmp_path}/data
sample_rate: 16000
text_encoder: {{path: unused}}
codec_training:
  out: {tmp_path}/codec
  audio: [{tmp_path}/train]
  validation: [{tmp_path}/held_out]
  architecture: {{num_filters: 2, hidden_size: 8, codebook_size: 16, lstm_layers: 1}}
  mel_windows: [256, 1024]
  discriminator: {{filters: 2, windows: [512, 128], start_step: 2}}
  segment_s: 0.25
  batch_size: 4
  steps: 12
  learning_rate: 0.003
  quantize_from_step: 4
  log_every: 1
  checkpoint_every: 4
"""
    )
    return path


def _train(path: Path, *overrides: str) -> Path:
    recipe = load_recipe(path, overrides)
    config = recipe.section("codec_training", CodecTrainingConfig)
    return codec_train.train_codec(recipe, config, QUIET)


def _rows(out: Path) -> list[dict]:
    """The log without what depends on the clock."""
    lines = Path(f"{out}.run/log.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if k != "audio_s_per_s"} for row in rows]


def _losses(out: Path) -> list[float]:
    return [row["loss"] for row in _rows(out)]


def test_the_finished_folder_decodes_what_it_encodes_and_says_where_it_comes_from(
    recipe_file: Path,
):
    out = _train(recipe_file)
    codec = load_codec(str(out))
    assert (codec.sample_rate, codec.hop, codec.n_codebooks, codec.codebook_size) == (
        16_000,
        320,
        4,
        16,
    )
    codes = codec.encode(0.1 * torch.randn(2, 3333))
    assert codes.shape == (2, 4, 11) and int(codes.max()) < 16
    assert codec.decode(codes).shape == (2, 11 * 320)
    card = (out / "README.md").read_text()
    assert "SI-SDR" in card and "empty_file" in card and "python -m training codec" in card
    # The run stays as it is when it is asked for again.
    before = (out / "model.safetensors").stat().st_mtime_ns
    assert _train(recipe_file) == out
    assert (out / "model.safetensors").stat().st_mtime_ns == before


def test_training_reduces_the_reconstruction_loss(recipe_file: Path):
    out = _train(recipe_file, "codec_training.steps=60")
    losses = _losses(out)
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_killed_training_goes_on_bit_for_bit(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = _train(recipe_file, f"codec_training.out={tmp_path}/whole")

    class Killed(Exception):
        pass

    draw = codec_train.segment_batch

    def draw_or_die(*args):
        if args[-1] == 10:
            raise Killed
        return draw(*args)

    monkeypatch.setattr(codec_train, "segment_batch", draw_or_die)
    with pytest.raises(Killed):
        _train(recipe_file, f"codec_training.out={tmp_path}/torn")
    monkeypatch.undo()
    time.sleep(1.1)  # event files are read in the order of their names, which tell whole seconds
    torn = _train(recipe_file, f"codec_training.out={tmp_path}/torn")
    # Steps 8 and 9 ran twice: from the checkpoint at 8 the same losses came out.
    rows = _rows(torn)
    assert rows[8:10] == rows[10:12]
    assert {"discriminator", "adversarial", "feature_grad_norm", "perplexity"} <= rows[-1].keys()
    # TensorBoard shows them once, and the row of the checkpoint's own step still.
    events = EventAccumulator(str(tmp_path / "torn.run" / "tb"))
    events.Reload()
    assert [event.step for event in events.Scalars("codec/loss")] == list(range(1, 13))
    assert rows[10:] == _rows(whole)[8:]
    assert (torn / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_another_configuration_is_refused_and_nothing_lost(recipe_file: Path):
    out = _train(recipe_file)
    weights = (out / "model.safetensors").read_bytes()
    with pytest.raises(AttuneError, match="another configuration"):
        _train(recipe_file, "codec_training.steps=13")
    assert (out / "model.safetensors").read_bytes() == weights


def test_a_trailing_slash_and_leftovers_lose_no_codec(recipe_file: Path, tmp_path: Path):
    (tmp_path / "codec").mkdir()  # empty: free
    (tmp_path / "codec.partial").mkdir()
    (tmp_path / "codec.partial" / "stale.bin").touch()
    out = _train(recipe_file, f"codec_training.out={tmp_path}/codec/")
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
    }
    assert (tmp_path / "codec.run" / "log.jsonl").is_file()


def test_what_stands_in_the_way_shows_before_training(recipe_file: Path, tmp_path: Path):
    (tmp_path / "codec").mkdir()
    (tmp_path / "codec" / "notes.txt").touch()
    with pytest.raises(AttuneError, match="exists and is not a codec"):
        _train(recipe_file)
    assert not (tmp_path / "codec.run").exists()


def test_damaged_files_and_diverging_training_are_told(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(AttuneError, match=r"not finite at step 2"):
        _train(recipe_file, "codec_training.learning_rate=1e30")
    checkpoint = tmp_path / "codec.run" / "checkpoint.safetensors"
    checkpoint.write_bytes(b"torn")
    with pytest.raises(AttuneError, match=r"checkpoint\.safetensors is damaged.*remove it"):
        _train(recipe_file, "codec_training.learning_rate=1e30")
    (tmp_path / "codec.run" / "config.json").write_text("{")
    with pytest.raises(AttuneError, match=r"config\.json is damaged"):
        _train(recipe_file)


def test_a_folder_without_usable_audio_is_one_clear_error(recipe_file: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(AttuneError, match="no usable audio"):
        _train(recipe_file, f"codec_training.audio=[{tmp_path}/empty]")
    with pytest.raises(AttuneError, match="no such folder"):
        _train(recipe_file, f"codec_training.audio=[{tmp_path}/nowhere]")


def test_segments_are_a_function_of_seed_and_step(recipe_file: Path, tmp_path: Path):
    clips = load_clips([str(tmp_path / "train")], 16_000, 0.1)
    assert len(clips.waves) == 4 and clips.refused == {"empty_file": 1}
    first = segment_batch(clips, 4000, 3, seed=1, step=5)
    assert first.shape == (3, 4000)
    assert torch.equal(first, segment_batch(clips, 4000, 3, seed=1, step=5))
    assert not torch.equal(first, segment_batch(clips, 4000, 3, seed=1, step=6))
    longer = segment_batch(clips, 20_000, 2, seed=1, step=0)
    assert not longer[:, 16_000:].any()


def test_losses_are_zero_for_equal_waveforms_and_grow_with_noise():
    wav = 0.2 * torch.sin(torch.arange(16_000) * 0.2)[None].repeat(2, 1)
    noise = torch.randn(2, 16_000, generator=torch.Generator().manual_seed(0))
    mel = MultiScaleMelLoss(16_000, (64, 512, 2048))
    assert float(mel(wav, wav)) == 0
    distances = [float(mel(wav + level * noise, wav)) for level in (1e-3, 1e-2, 1e-1)]
    assert distances == sorted(distances) and distances[0] > 0


def test_si_sdr_equals_the_noise_level_and_ignores_scale():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(1, 100_000, generator=generator)
    noisy = target + 0.1 * torch.randn(1, 100_000, generator=generator)
    assert float(si_sdr(noisy, target)) == pytest.approx(20, abs=0.1)
    assert float(si_sdr(5 * noisy, target)) == pytest.approx(float(si_sdr(noisy, target)), abs=1e-3)
