"""What `codec --dry-run`, `--status` and `--fresh` say and do."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import Result
from typer.testing import CliRunner

from common.errors import AttuneError
from training.cli import app
from training.run.signals import RESUMABLE, StopSignals
from training.run.status import read_status, status_lines

RECIPE = """
name: test
run_dir: {root}
data_dir: {root}/data
sample_rate: 16000
text_encoder: {{path: unused}}
codec_training:
  out: {root}/codec
  audio: [{root}/train]
  validation: [{root}/held_out]
  architecture: {{num_filters: 2, hidden_size: 8, codebook_size: 16}}
  discriminator: {{filters: 2, windows: [512, 128]}}
  segment_s: 0.25
  batch_size: 4
  steps: 6
  quantize_from_step: 2
  log_every: 1
  checkpoint_every: 2
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for folder, seconds in (("train", 1.5), ("held_out", 1.0)):
        (tmp_path / folder).mkdir()
        for i in range(2):
            wave = rng.uniform(-0.3, 0.3, round(16_000 * seconds))
            soundfile.write(tmp_path / folder / f"{i}.wav", wave, 16_000)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(root=tmp_path))
    return tmp_path


def _codec(root: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["codec", "--config", f"{root}/recipe.yaml", *arguments])


def _told(root: Path, *arguments: str) -> str:
    result = _codec(root, *arguments)
    assert result.exit_code == 0, result.exception
    return result.stdout


def _stop_after(root: Path, step: int, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    """A run that is told to stop."""
    with monkeypatch.context() as patch:
        patch.setattr(StopSignals, "asked", property(lambda self: len(_steps(root)) >= step))
        assert _codec(root, *overrides).exit_code == RESUMABLE


def _steps(root: Path) -> list[int]:
    log = root / "codec.run" / "log.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    return [row["step"] for row in rows if "loss" in row]


def test_a_dry_run_tells_sizes_audio_and_places_and_makes_nothing(root: Path):
    (root / "train" / "broken.wav").touch()
    before = sorted(root.rglob("*"))
    found = json.loads(_told(root, "--dry-run", "--json"))
    assert found["audio"] == {"clips": 3, "seconds": 3.0, "untold": 1}
    assert found["validation"] == {"clips": 2, "seconds": 2.0, "untold": 0}
    assert (found["steps"], found["batch_size"], found["processes"]) == (6, 4, 1)
    assert found["parameters"] > 1000 and found["discriminator_parameters"] > 100
    assert found["precision"] == "fp32"
    assert (found["out"], found["run"]) == (f"{root}/codec", f"{root}/codec.run")
    lines = _told(root, "--dry-run", "codec_training.discriminator.filters=4")
    assert "3 clips, 3.0 s, 1 of unknown length" in lines
    assert "6 of 4 x 0.25 s on 1 x cpu, 2.0 times the audio" in lines
    assert sorted(root.rglob("*")) == before
    refused = _codec(root, "--json")
    assert "--json goes with --dry-run or --status" in str(refused.exception)


def test_a_dry_run_tells_what_auto_comes_to(root: Path, monkeypatch: pytest.MonkeyPatch):
    for has, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("training.run.precision.has_bfloat16", lambda device, has=has: has)
        monkeypatch.setattr("training.codec.step.check_bfloat16", lambda *args: None)
        found = json.loads(_told(root, "--dry-run", "--json", "codec_training.precision=auto"))
        assert found["precision"] == precision


def test_the_status_of_a_run_from_its_beginning_to_its_end(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    nothing = _codec(root, "--status")
    assert "codec.run: no run there (no config.json)" in str(nothing.exception)
    _stop_after(root, 3, monkeypatch, "codec_training.valid_every=2")
    found = json.loads(_told(root, "--status", "--json"))
    assert (found["state"], found["step"], found["steps"], found["share"]) == (
        "training", 3, 6, 0.5,
    )  # fmt: skip
    assert {"loss", "mel", "commitment", "discriminator"} <= found["losses"].keys()
    assert found["validation"]["step"] == 2 and found["validation"]["clips"] == 2
    assert len(found["used"]) == len(found["perplexity"]) == 4
    assert found["eta_s"] > 0
    log = root / "codec.run" / "log.jsonl"
    os.utime(log, (1000, 1000))
    old = read_status(root / "codec.run", root / "codec", now=5000)
    assert (old["state"], old["last_line_s"]) == ("stopped", 4000)
    assert status_lines(old)[0] == f"{root}/codec: stopped"
    _told(root)
    lines = _told(root, "--status")
    assert f"{root}/codec: finished" in lines and "step      6/6 (100.0%)\n" in lines
    assert "of 2 clips at step 6" in lines and "used (perplexity), by stream" in lines
    assert json.loads(_told(root, "--dry-run", "--json"))["finished"] is True
    (root / "codec.run" / "config.json").write_text("{")
    assert "is damaged" in str(_codec(root, "--status").exception)
    (root / "codec.run" / "config.json").unlink()
    assert "holds a finished codec" in str(_codec(root, "--status").exception)


def test_fresh_starts_an_unfinished_run_over_and_removes_no_codec(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    _stop_after(root, 3, monkeypatch)
    run = root / "codec.run"
    (run / "notes.txt").write_text("mine")
    other = "codec_training.learning_rate=1e-3"
    refused = _codec(root, other)
    words = "was started with codec_training.learning_rate = 0.0003, now it is 0.001; name another"
    assert words in str(refused.exception) and "--fresh" in str(refused.exception)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    _told(root, other, "--fresh", "--dry-run")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    _told(root, other, "--fresh")
    assert _steps(root) == list(range(1, 7))
    kept = json.loads((run / "config.json").read_text())
    assert kept["codec_training"]["learning_rate"] == 1e-3
    assert (run / "notes.txt").read_text() == "mine"
    weights = (root / "codec" / "model.safetensors").read_bytes()
    for arguments in ((other,), ()):
        kept = _codec(root, *arguments, "--fresh")
        assert isinstance(kept.exception, AttuneError)
        assert "holds a finished codec, which --fresh does not remove" in str(kept.exception)
    assert (root / "codec" / "model.safetensors").read_bytes() == weights


def test_fresh_takes_a_damaged_run(root: Path, monkeypatch: pytest.MonkeyPatch):
    _stop_after(root, 3, monkeypatch)
    for path in [root / "codec.run/config.json", *(root / "codec.run").rglob("*.distcp")]:
        path.write_text("{")
    assert "is damaged" in str(_codec(root).exception)
    _told(root, "--fresh")
    assert _steps(root) == list(range(1, 7))
