"""A run's folder in `lm --status` and `lm --curves`, its samples, its profile, W&B."""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import run_command, train_tiny, without_clock

from common.config import load_recipe
from common.errors import AttuneError
from training.run import log as progress
from training.run import profiling
from training.run.folder import as_recorded, recorded_recipe
from training.run.log import MEASURED, Meter, read_log
from training.run.status import read_status, status_lines, write_curves
from training.sampling.config import SamplingConfig
from training.train import train


def make_run(folder: Path, steps: int = 100, logged: int = 40, last: str = "step-00000040") -> Path:
    """A run whose step takes two seconds, and which was resumed after step 20."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"lm": {"steps": steps}}))
    (folder / "latest").write_text(last + "\n")
    rows = []
    for step in range(1, logged + 1):
        dropped = float(step % 10 == 0)
        row = {
            "step": step, "loss": 5 - 0.01 * step, "loss_per_stream": [5.0, 4.0, 4.5, 5.5],
            "dropped": dropped, "grad_norm": 1.0, "lr": 1e-4, "tokens_per_s": 900.0,
            "elapsed_s": 2.0 * (step if step <= 20 else step - 20), "mfu": 0.25,
            "loader_wait": 0.01, "memory_gib": 1.5,
        }  # fmt: skip
        rows.append(row | ({"rr": 0.2, "rr_correlation": 0.5} if dropped else {}))
    rows.append({"step": logged, "valid_loss": 4.5, "valid_loss_uncond": 4.75})
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_run_under_way(tmp_path: Path) -> None:
    run = make_run(tmp_path / "lm")
    os.utime(run / "log.jsonl", (1000, 1000))
    found = read_status(run, now=1030)
    assert (found["state"], found["step"], found["steps"]) == ("training", 40, 100)
    assert found["eta_s"] == 120.0 and found["last_line_s"] == 30.0
    assert found["loss"] == pytest.approx(sum(5 - 0.01 * s for s in range(1, 41) if s % 10) / 36)
    assert found["loss_without_text"] == pytest.approx(5 - 0.25)
    assert (found["rr"], found["rr_correlation"], found["valid_loss"]) == (0.2, 0.5, 4.5)
    lines = status_lines(found)
    assert lines[1] == "step      40/100 (40.0%)  eta 2:00"
    assert any("MFU 25.0%  waiting for data 1.0%" in line for line in lines)
    assert read_status(run, now=1000 + 3600)["state"] == "stopped"


def test_a_run_at_its_ends(tmp_path: Path) -> None:
    done = read_status(make_run(tmp_path / "done", steps=40))
    assert done["state"] == "finished" and done["eta_s"] is None
    new = tmp_path / "new"
    new.mkdir()
    (new / "config.json").write_text(json.dumps({"lm": {"steps": 5}}))
    empty = read_status(new)
    assert (empty["state"], empty["step"], empty["checkpoint"]) == ("empty", 0, None)
    assert status_lines(empty)[1] == "step      0/5 (0.0%)"


def test_a_folder_without_a_run_is_reported(tmp_path: Path) -> None:
    make_run(tmp_path / "lm")
    with pytest.raises(AttuneError, match=r"no run there .*there are lm"):
        read_status(tmp_path / "other")
    (tmp_path / "lm" / "config.json").write_text("{")
    with pytest.raises(AttuneError, match="is damaged"):
        read_status(tmp_path / "lm")
    with pytest.raises(AttuneError, match="no curves"):
        write_curves([tmp_path / "other"], tmp_path / "curves.png")


def test_the_commands(tiny_run: Path, tiny_root: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> str:
        return run_command("lm", "--config", tiny_root / "recipe.yaml", *arguments).stdout

    found = json.loads(run("--status", "--json"))
    assert found["state"] == "finished" and found["step"] == 12 and found["memory_gib"] > 0
    assert "finished" in run("--status")
    out = tmp_path / "curves.png"
    assert run("--curves", out).strip() == str(out)
    assert out.read_bytes()[:4] == b"\x89PNG" and out.stat().st_size > 20_000


def test_every_row_has_the_measurements(tiny_run: Path) -> None:
    rows = [row for row in read_log(tiny_run) if "loss" in row]
    assert all(row.keys() >= set(MEASURED) for row in rows)
    assert all(0 <= row["mfu"] < 2 and 0 <= row["loader_wait"] <= 1 for row in rows)


def test_the_meter_counts_waiting_and_leaves_out_work_aside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def slowly() -> Iterator[int]:
        for i in range(3):
            now[0] += 0.03
            yield i

    meter = Meter(1e6, torch.device("cpu"))
    for _ in meter.waiting(slowly()):
        now[0] += 0.07
        meter.add(10, 1e4)
        with meter.aside():
            now[0] += 0.2
    row = meter.row()
    assert row["loader_wait"] == pytest.approx(0.3)
    assert row["tokens_per_s"] == pytest.approx(100)
    assert row["mfu"] == pytest.approx(0.1)
    assert row["elapsed_s"] == pytest.approx(0.9)
    meter.restart()
    assert meter.row()["tokens_per_s"] == 0


def test_a_prompt_of_which_nothing_remains_is_reported_before_the_first_step(
    tiny_root: Path, tmp_path: Path
) -> None:
    options = ['lm.samples=["the of 12"]']
    with pytest.raises(AttuneError, match="prompt 'the of 12': nothing remains"):
        train_tiny(tiny_root, tmp_path, *options)
    assert not (tmp_path / "lm").exists()


def test_samples_are_made_and_change_nothing(tiny_root: Path, tmp_path: Path) -> None:
    """With and without them the losses are the same to the bit."""
    logs = []
    for name, prompts in (("with", "[dog]"), ("without", "[]")):
        options = [f"lm.samples={prompts}"]
        logs.append(without_clock(train_tiny(tiny_root, tmp_path / name, *options)))
    assert logs[0] == logs[1]
    run = tmp_path / "with" / "lm"
    wave, rate = soundfile.read(run / "samples" / "step-00000010" / "00.wav")
    assert rate == 16_000 and len(wave) == 16_000 * 0.4
    assert (run / "samples" / "step-00000012").exists()
    events = EventAccumulator(str(run / "tb")).Reload()
    assert events.Tags()["audio"] == ["sample/dog"]
    assert events.Tags()["images"] == ["spectrogram/dog"]


def test_wandb_gets_the_rows_of_tensorboard(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["lm.wandb=project", "lm.steps=3"]
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(AttuneError, match="pip install wandb"):
        train_tiny(tiny_root, tmp_path, *overrides)
    calls: list[object] = []
    fake = SimpleNamespace(
        init=lambda **options: (
            calls.append(options) or SimpleNamespace(finish=lambda: calls.append("end"))
        )
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    train_tiny(tiny_root, tmp_path, *overrides)
    assert calls[0]["project"] == "project" and calls[0]["sync_tensorboard"] is True
    assert calls[1:] == ["end"]


def test_a_profile_is_written_and_changes_nothing(
    tiny_root: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe(tiny_root / "recipe.yaml", [f"run_dir={tmp_path}"])
    trace = tmp_path / "traces" / "step.json.gz"
    run = train(recipe, profile=trace)
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    names = [event.get("name") for event in events if event.get("ph") == "X"]
    assert names.count("attune: update") == profiling.STEPS
    assert {"attune: forward and backward", "aten::mm", "aten::_fused_adamw_"} <= set(names)
    out = capsys.readouterr().out
    assert f"trace of {profiling.STEPS} steps: {trace}" in out and "aten::mm" in out
    assert without_clock(read_log(run)) == without_clock(read_log(tiny_run))


def test_a_profile_that_cannot_be_written_is_reported(
    tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe(tiny_root / "recipe.yaml", [f"run_dir={tmp_path}", "lm.steps=5"])
    (tmp_path / "file").write_text("mine")
    with pytest.raises(AttuneError, match=r"name a \.json or"):
        train(recipe, profile=tmp_path / "trace.txt", fresh=True)
    with pytest.raises(AttuneError, match="cannot be written"):
        train(recipe, profile=tmp_path / "file" / "trace.json", fresh=True)
    # A run that ends early writes what was recorded, or says that nothing was.
    train(recipe, profile=tmp_path / "short.json", fresh=True)
    assert "trace of 2 steps" in capsys.readouterr().out
    overrides = [f"run_dir={tmp_path}", "lm.steps=2", "lm.optim.warmup=1"]
    again = load_recipe(tiny_root / "recipe.yaml", overrides)
    train(again, profile=tmp_path / "none.json", fresh=True)
    assert "before anything was recorded" in capsys.readouterr().err
    assert not (tmp_path / "none.json").exists()


def test_a_run_keeps_text_of_the_command_line_as_typed(tiny_root: Path, tmp_path: Path) -> None:
    given = ["sampling.negative_prompt=no", "sampling.cfg=2", "lm.run=2024"]
    recipe = load_recipe(tiny_root / "recipe.yaml", given)
    (tmp_path / "config.json").write_text(json.dumps({"recipe": as_recorded(recipe)}))
    kept = recorded_recipe(tmp_path).section("sampling", SamplingConfig)
    assert (kept.negative_prompt, kept.cfg) == ("no", 2.0)
