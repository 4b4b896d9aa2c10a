"""Checkpoints written in the background: the same files, and nothing lost."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from tiny_lm import state
from tiny_runs import linear_checkpointer, names_in, train_tiny, without_clock

from common.errors import AttuneError
from training.checkpoint import save as checkpoint
from training.run.log import read_log

BEHIND = "lm.async_checkpoint=true"


def test_a_background_save_writes_the_same_files(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if training changes all weights before the first byte is written."""
    settings = ["lm.checkpoint_every=4", "lm.keep=9"]
    before = train_tiny(tiny_root, tmp_path, "lm.run=before", *settings)
    real = dcp.FileSystemWriter.write_data

    def late(*args: object) -> object:
        time.sleep(0.3)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(dcp.FileSystemWriter, "write_data", late)
    behind = train_tiny(tiny_root, tmp_path, "lm.run=behind", BEHIND, *settings)
    assert without_clock(behind) == without_clock(before)
    for step in (4, 8, 12):
        name = f"checkpoints/step-{step:08d}"
        one, two = (tmp_path / run / name for run in ("before", "behind"))
        states = [state(folder) for folder in (one, two)]
        assert states[0].keys() == states[1].keys()
        assert any("exp_avg" in key for key in states[0])
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
        averages = [load_file(folder / "model.safetensors") for folder in (one, two)]
        assert all(torch.equal(averages[0][key], averages[1][key]) for key in averages[0])
        assert (one / "model.json").read_text().replace("before", "behind") == (
            two / "model.json"
        ).read_text()
    assert (tmp_path / "behind" / "latest").read_text() == "step-00000012\n"


def test_training_continues_meanwhile_and_one_is_written_at_a_time(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, lock = checkpoint.save_file, threading.Lock()
    seen: list[tuple[bool, int]] = []

    def slow(*args: object) -> None:
        alone = lock.acquire(blocking=False)
        time.sleep(1)
        seen.append((alone, len(read_log(tmp_path / "lm"))))
        real(*args)  # type: ignore[arg-type]
        lock.release()

    monkeypatch.setattr(checkpoint, "save_file", slow)
    train_tiny(tiny_root, tmp_path, BEHIND, "lm.checkpoint_every=4")
    assert [alone for alone, _ in seen] == [True] * 3
    # Steps were made before a checkpoint was whole, and the next one waited for it.
    assert [4 < seen[0][1] <= 8, 8 < seen[1][1] <= 12] == [True, True]
    assert names_in(tmp_path / "lm" / "checkpoints") == ["step-00000008", "step-00000012"]


def test_resuming_from_one_gives_the_same_losses(tiny_root: Path, tmp_path: Path) -> None:
    whole = without_clock(train_tiny(tiny_root, tmp_path, BEHIND, "lm.keep=3"))
    # The option may be turned off in between.
    for step, overrides in ((5, [BEHIND]), (10, [])):
        (tmp_path / "lm" / "latest").write_text(f"step-{step:08d}\n")
        assert without_clock(train_tiny(tiny_root, tmp_path, *overrides)) == whole


def test_an_error_in_the_background_stops_the_run_with_a_line(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoint.save_file

    def full_disk(weights: dict, path: Path) -> None:
        if "step-00000008" in str(path):
            raise OSError(28, "No space left on device")
        real(weights, path)

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(AttuneError, match=r"checkpoint .*step-00000008: cannot be saved") as raised:
        train_tiny(tiny_root, tmp_path, BEHIND, "lm.checkpoint_every=4")
    assert "No space left" in str(raised.value) and "\n" not in str(raised.value)
    assert (tmp_path / "lm" / "latest").read_text() == "step-00000004\n"
    assert not (tmp_path / "lm" / "checkpoints" / "step-00000012").exists()


def test_an_error_shows_at_the_next_step(tmp_path: Path) -> None:
    """`check` neither waits nor stays silent."""
    saver = linear_checkpointer(tmp_path, background=True)
    saver.save(1, {})
    saver.wait()
    saver.check()
    assert (tmp_path / "latest").read_text() == "step-00000001\n"
    saver.save(2, {"not json": object()})
    with pytest.raises(AttuneError, match=r"step-00000002: cannot be saved: TypeError"):
        for _ in range(6000):
            saver.check()
            time.sleep(0.01)
    assert (tmp_path / "latest").read_text() == "step-00000001\n"
