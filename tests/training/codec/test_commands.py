"""The options `codec --dry-run`, `--status` and `--fresh`."""

import json
import os
from pathlib import Path

import pytest
from tiny_codec_run import write_codec_recipe
from tiny_runs import contents, run_command
from typer.testing import CliRunner

from common.errors import AttuneError
from training.cli import app
from training.run.signals import RESUMABLE, StopSignals
from training.run.status import read_status, status_lines


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_codec_recipe(tmp_path, steps=6, quantize_from_step=2, checkpoint_every=2)
    return tmp_path


def _codec(root: Path, *arguments: str) -> str:
    return run_command("codec", "--config", root / "recipe.yaml", *arguments).stdout


def _refusal(root: Path, *arguments: str) -> str:
    with pytest.raises(AttuneError) as refused:
        _codec(root, *arguments)
    return str(refused.value)


def _stop_after(root: Path, step: int, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    """A run that is asked to stop."""
    with monkeypatch.context() as patch:
        patch.setattr(StopSignals, "asked", property(lambda self: len(_steps(root)) >= step))
        command = ["codec", "--config", f"{root}/recipe.yaml", *overrides]
        assert CliRunner().invoke(app, command).exit_code == RESUMABLE


def _steps(root: Path) -> list[int]:
    log = root / "codec.run" / "log.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    return [row["step"] for row in rows if "loss" in row]


def test_a_dry_run_reports_sizes_audio_and_places_and_makes_nothing(root: Path):
    before = sorted(root.rglob("*"))
    found = json.loads(_codec(root, "--dry-run", "--json"))
    assert found["audio"] == {"clips": 5, "seconds": 4.0, "untold": 1}
    assert found["validation"] == {"clips": 4, "seconds": 4.0, "untold": 0}
    assert (found["steps"], found["batch_size"], found["processes"]) == (6, 4, 1)
    assert found["parameters"] > 1000 and found["discriminator_parameters"] > 100
    assert found["precision"] == "fp32"
    assert (found["out"], found["run"]) == (f"{root}/codec", f"{root}/codec.run")
    lines = _codec(root, "--dry-run", "codec_training.discriminator.filters=4")
    assert "5 clips, 4.0 s, 1 of unknown length" in lines
    assert "6 of 4 x 0.25 s on 1 x cpu, 1.5 times the audio" in lines
    assert sorted(root.rglob("*")) == before
    assert "--json goes with --dry-run or --status" in _refusal(root, "--json")


def test_a_dry_run_reports_what_auto_chooses(root: Path, monkeypatch: pytest.MonkeyPatch):
    for has, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("training.run.precision.has_bfloat16", lambda device, has=has: has)
        monkeypatch.setattr("training.codec.step.check_bfloat16", lambda *args: None)
        found = json.loads(_codec(root, "--dry-run", "--json", "codec_training.precision=auto"))
        assert found["precision"] == precision


def test_the_status_of_a_run_from_its_beginning_to_its_end(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    assert "codec.run: no run there (no config.json)" in _refusal(root, "--status")
    _stop_after(root, 3, monkeypatch, "codec_training.valid_every=2")
    found = json.loads(_codec(root, "--status", "--json"))
    facts = [found[key] for key in ("state", "step", "steps", "share")]
    assert facts == ["training", 3, 6, 0.5]
    assert {"loss", "mel", "commitment", "discriminator"} <= found["losses"].keys()
    assert found["validation"]["step"] == 2 and found["validation"]["clips"] == 4
    assert len(found["used"]) == len(found["perplexity"]) == 4
    assert found["eta_s"] > 0
    log = root / "codec.run" / "log.jsonl"
    os.utime(log, (1000, 1000))
    old = read_status(root / "codec.run", root / "codec", now=5000)
    assert (old["state"], old["last_line_s"]) == ("stopped", 4000)
    assert status_lines(old)[0] == f"{root}/codec: stopped"
    _codec(root)
    lines = _codec(root, "--status")
    assert f"{root}/codec: finished" in lines and "step      6/6 (100.0%)\n" in lines
    assert "of 4 clips at step 6" in lines and "used (perplexity), by stream" in lines
    assert json.loads(_codec(root, "--dry-run", "--json"))["finished"] is True
    (root / "codec.run" / "config.json").write_text("{")
    assert "is damaged" in _refusal(root, "--status")
    (root / "codec.run" / "config.json").unlink()
    assert "holds a finished codec" in _refusal(root, "--status")


def test_fresh_starts_an_unfinished_run_over_and_removes_no_codec(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    _stop_after(root, 3, monkeypatch)
    run = root / "codec.run"
    (run / "notes.txt").write_text("mine")
    other = "codec_training.learning_rate=1e-3"
    refusal = _refusal(root, other)
    words = "was started with codec_training.learning_rate = 0.003, now it is 0.001; name another"
    assert words in refusal and "--fresh" in refusal
    before = contents(run)
    _codec(root, other, "--fresh", "--dry-run")
    assert contents(run) == before
    _codec(root, other, "--fresh")
    assert _steps(root) == list(range(1, 7))
    kept = json.loads((run / "config.json").read_text())
    assert kept["codec_training"]["learning_rate"] == 1e-3
    assert (run / "notes.txt").read_text() == "mine"
    weights = (root / "codec" / "model.safetensors").read_bytes()
    for arguments in ((other,), ()):
        refusal = _refusal(root, *arguments, "--fresh")
        assert "holds a finished codec, which --fresh does not remove" in refusal
    assert (root / "codec" / "model.safetensors").read_bytes() == weights


def test_fresh_takes_a_damaged_run(root: Path, monkeypatch: pytest.MonkeyPatch):
    _stop_after(root, 3, monkeypatch)
    for path in [root / "codec.run/config.json", *(root / "codec.run").rglob("*.distcp")]:
        path.write_text("{")
    assert "is damaged" in _refusal(root)
    _codec(root, "--fresh")
    assert _steps(root) == list(range(1, 7))
