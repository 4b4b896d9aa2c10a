"""Checkpoints written in the background: the same files, and nothing lost."""

from __future__ import annotations

import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from common.config import load_recipe
from common.errors import AttuneError
from training.checkpoint import save as checkpoint
from training.checkpoint.save import Checkpointer, ModelState
from training.run.log import MEASURED, read_log
from training.train import train

BEHIND = "lm.async_checkpoint=true"


def _train(root: Path, out: Path, *overrides: str) -> list[dict]:
    rows = read_log(train(load_recipe(root / "recipe.yaml", [f"run_dir={out}", *overrides])))
    return [{key: value for key, value in row.items() if key not in MEASURED} for row in rows]


def _state(folder: Path) -> dict[str, torch.Tensor]:
    metadata = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    state = {
        key: torch.empty(value.size, dtype=value.properties.dtype)
        for key, value in metadata.items()
        if hasattr(value, "size")
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(state, checkpoint_id=folder, no_dist=True)
    return state


def test_what_is_written_behind_is_what_would_have_been(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where training goes on, and changes everything, before the first byte is written."""
    settings = ["lm.checkpoint_every=4", "lm.keep=9"]
    before = _train(tiny_root, tmp_path, "lm.run=before", *settings)
    real = dcp.FileSystemWriter.write_data

    def late(*args: object) -> object:
        time.sleep(0.3)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(dcp.FileSystemWriter, "write_data", late)
    assert _train(tiny_root, tmp_path, "lm.run=behind", BEHIND, *settings) == before
    for step in (4, 8, 12):
        name = f"checkpoints/step-{step:08d}"
        one, two = (tmp_path / run / name for run in ("before", "behind"))
        states = [_state(folder / "state") for folder in (one, two)]
        assert states[0].keys() == states[1].keys()
        assert any("exp_avg" in key for key in states[0])
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
        averages = [load_file(folder / "model.safetensors") for folder in (one, two)]
        assert all(torch.equal(averages[0][key], averages[1][key]) for key in averages[0])
        assert (one / "model.json").read_text().replace("before", "behind") == (
            two / "model.json"
        ).read_text()
    assert (tmp_path / "behind" / "latest").read_text() == "step-00000012\n"


def test_training_goes_on_meanwhile_and_one_is_written_at_a_time(
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
    _train(tiny_root, tmp_path, BEHIND, "lm.checkpoint_every=4")
    assert [alone for alone, _ in seen] == [True] * 3
    # Steps were made before a checkpoint was whole, and the next one waited for it.
    assert [4 < seen[0][1] <= 8, 8 < seen[1][1] <= 12] == [True, True]
    finished = sorted(folder.name for folder in (tmp_path / "lm" / "checkpoints").iterdir())
    assert finished == ["step-00000008", "step-00000012"]


def test_going_on_from_one_gives_the_same_losses(tiny_root: Path, tmp_path: Path) -> None:
    whole = _train(tiny_root, tmp_path, BEHIND, "lm.keep=3")
    (tmp_path / "lm" / "latest").write_text("step-00000005\n")
    assert _train(tiny_root, tmp_path, BEHIND) == whole
    (tmp_path / "lm" / "latest").write_text("step-00000010\n")
    assert _train(tiny_root, tmp_path) == whole  # it may be turned off in between


def test_what_goes_wrong_behind_stops_the_run_with_a_line(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoint.save_file

    def full_disk(weights: dict, path: Path) -> None:
        if "step-00000008" in str(path):
            raise OSError(28, "No space left on device")
        real(weights, path)

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(AttuneError, match=r"checkpoint .*step-00000008: cannot be saved") as raised:
        _train(tiny_root, tmp_path, BEHIND, "lm.checkpoint_every=4")
    assert "No space left" in str(raised.value) and "\n" not in str(raised.value)
    assert (tmp_path / "lm" / "latest").read_text() == "step-00000004\n"
    assert not (tmp_path / "lm" / "checkpoints" / "step-00000012").exists()


def test_an_error_shows_at_the_next_step(tmp_path: Path) -> None:
    """`check` neither waits nor stays silent."""
    from training.config import OptimConfig
    from training.distributed import World
    from training.ema import ExponentialMovingAverage
    from training.optim import build_optimizer

    model = torch.nn.Linear(2, 2)
    optimizer = build_optimizer(model, OptimConfig())
    ema = ExponentialMovingAverage(model, 0.9)
    world = World(0, 1, torch.device("cpu"))
    saver = Checkpointer(
        tmp_path, world, ModelState(model, optimizer, ema), keep=2, background=True
    )
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
