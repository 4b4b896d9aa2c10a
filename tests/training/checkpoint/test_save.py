"""Checkpoints that are damaged, half-written, the best, or do not fit on the disk."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_lm import state
from tiny_runs import MakesFolder, linear_checkpointer, names_in, train_tiny, without_clock

from common.errors import AttuneError
from training import train as training
from training.checkpoint import save as checkpoints
from training.checkpoint.load import load_for_inference
from training.run.folder import latest_checkpoint


def _train(root: Path, out: Path, *overrides: str) -> list[dict]:
    return train_tiny(root, out, "lm.steps=10", *overrides)


def _cut(folder: Path) -> None:
    for part in (folder / "state").glob("*.distcp"):
        part.write_bytes(part.read_bytes()[:-100])


def _zero(folder: Path) -> None:
    """As after a crash of the machine: the file's length was written, its bytes were not."""
    for part in (folder / "state").glob("*.distcp"):
        part.write_bytes(bytes(part.stat().st_size))


def _run_code(folder: Path) -> None:
    code = pickle.dumps(MakesFolder(folder.parents[2] / "made"))
    (folder / "state" / ".metadata").write_bytes(code)
    with pytest.raises(AttuneError, match=r"state/\.metadata: names \w+\.mkdir.* could run code"):
        load_for_inference(folder, raw=True)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (_cut, "cannot be loaded: "),
        (_zero, "cannot be loaded: "),
        (lambda folder: (folder / "state" / ".metadata").unlink(), "cannot be loaded: "),
        (
            lambda folder: (folder / "model.json").unlink(),
            "has no model.json, so it is not complete",
        ),
        (_run_code, "state/.metadata: names posix.mkdir"),
        (shutil.rmtree, "latest names step-00000010, which is not in"),
    ],
    ids=["cut", "zeros", "no metadata", "no model.json", "code", "gone"],
)
def test_a_damaged_newest_checkpoint_costs_no_more_than_the_way_back(
    tiny_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    why: str,
) -> None:
    whole = without_clock(_train(tiny_root, tmp_path, "lm.checkpoint_every=4"))
    run = tmp_path / "lm"
    assert names_in(run / "checkpoints") == ["step-00000008", "step-00000010"]
    final = state(run / "checkpoints" / "step-00000010")
    damage(run / "checkpoints" / "step-00000010")
    capsys.readouterr()
    assert without_clock(_train(tiny_root, tmp_path, "lm.checkpoint_every=9")) == whole
    out, err = capsys.readouterr()
    assert "8 steps are done: resuming" in out
    lines = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert lines[0].startswith(f"warning: checkpoint {run}/checkpoints/step-00000010: ")
    assert why in lines[0]
    assert lines[1:] == [f"warning: going back to {run}/checkpoints/step-00000008"]
    assert not (tmp_path / "made").exists()
    # Saving step 9 removed the damaged checkpoint first, and not the good one before it.
    assert names_in(run / "checkpoints") == ["step-00000009", "step-00000010"]
    again = state(run / "checkpoints" / "step-00000010")
    assert all(torch.equal(final[key], again[key]) for key in final)


def test_a_damaged_checkpoint_does_not_count_among_those_kept(
    tiny_root: Path, tmp_path: Path
) -> None:
    _train(tiny_root, tmp_path, "lm.checkpoint_every=4")
    run = tmp_path / "lm"
    _cut(run / "checkpoints" / "step-00000010")
    shutil.copytree(run / "checkpoints" / "step-00000010", run / "checkpoints" / "step-00000009")
    (run / "checkpoints" / "step-00000009.partial").mkdir()
    _train(tiny_root, tmp_path)
    assert names_in(run / "checkpoints") == ["step-00000008", "step-00000010"]


def test_if_none_can_be_loaded_the_newest_is_reported(tiny_root: Path, tmp_path: Path) -> None:
    _train(tiny_root, tmp_path)
    run = tmp_path / "lm"
    for folder in (run / "checkpoints").iterdir():
        _cut(folder)
    with pytest.raises(AttuneError, match=r"step-00000010: cannot be loaded") as raised:
        _train(tiny_root, tmp_path)
    assert "\n" not in str(raised.value) and "Traceback" not in str(raised.value)
    assert "--fresh" in str(raised.value)
    assert (run / "latest").read_text() == "step-00000010\n"
    (run / "latest").write_text("step-00000003\n")
    with pytest.raises(AttuneError, match="names step-00000003, which is not in"):
        _train(tiny_root, tmp_path)
    (run / "config.json").write_text('{"lm": {"ste')
    with pytest.raises(AttuneError, match=r"config\.json is damaged.*--fresh"):
        _train(tiny_root, tmp_path)


def test_the_best_stays_beside_the_newest(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 1.0, float("nan"), 2.0, 1.5])
    monkeypatch.setattr(training, "validate", lambda *_: {"valid_loss": next(losses)})
    overrides = ["lm.valid_every=2", "lm.checkpoint_every=2", "lm.keep=1"]
    _train(tiny_root, tmp_path, *overrides)
    run = tmp_path / "lm"
    assert names_in(run / "checkpoints") == ["step-00000004", "step-00000010"]
    assert (run / "best").read_text() == "step-00000004\n"
    assert (run / "latest").read_text() == "step-00000010\n"
    # Resumed from before the best one: a new best one is found.
    (run / "latest").write_text("step-00000004\n")
    losses = iter([0.5, 2.0, 2.0])
    _train(tiny_root, tmp_path, *overrides)
    assert (run / "best").read_text() == "step-00000006\n"
    assert names_in(run / "checkpoints") == ["step-00000006", "step-00000010"]


def test_weights_have_the_mode_of_any_file(tiny_run: Path) -> None:
    folder = latest_checkpoint(tiny_run)
    assert folder is not None
    weights, description = folder / "model.safetensors", folder / "model.json"
    assert weights.stat().st_mode == description.stat().st_mode


@pytest.mark.parametrize("where", ["state", "model.safetensors", "latest"])
def test_a_failed_save_leaves_the_earlier_ones(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    _train(tiny_root, tmp_path, "lm.keep=1")
    run = tmp_path / "lm"
    kept = state(latest_checkpoint(run) or Path())

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    saver = linear_checkpointer(run, keep=1)
    target = {
        "state": (checkpoints.dcp, "save"),
        "model.safetensors": (checkpoints, "save_file"),
        "latest": (checkpoints, "write_atomically"),
    }[where]
    with monkeypatch.context() as patch:
        patch.setattr(*target, full)
        words = "step-00000011: cannot be saved: OSError.*No space left on device; earlier "
        with pytest.raises(AttuneError, match=words):
            saver.save(11, {})
    assert (run / "latest").read_text() == "step-00000010\n"
    assert not list(run.glob("**/*.partial"))
    again = state(latest_checkpoint(run) or Path())
    assert all(torch.equal(kept[key], again[key]) for key in kept)
