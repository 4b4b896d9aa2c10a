"""Folders that appear whole: other folders stay as they are, and an earlier export is not lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from common.errors import AttuneError
from training.interop.folders import staged, write_record


def _write(to: Path, text: str) -> None:
    with staged(to, replace=True) as folder:
        (folder / "weights").write_text(text)
        write_record(folder, {})


def _fail_to_rename(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Folders of these names stay where they are."""
    rename = Path.rename

    def failing(path: Path, to: Path) -> Path:
        if path.name in names:
            raise OSError(5, "Input/output error")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", failing)


def test_folders_beside_it_are_nobodys_leftovers(tmp_path: Path) -> None:
    for name in ("out.old", "out.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("years")
    for text in ("one", "two"):
        _write(tmp_path / "out", text)
    assert (tmp_path / "out" / "weights").read_text() == "two"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.old", "out.partial"]
    for name in ("out.old", "out.partial"):
        assert (tmp_path / name / "thesis.txt").read_text() == "years"


def test_folders_and_weights_have_the_modes_of_any_other(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with staged(tmp_path / "below" / "out", replace=False) as folder:
            (folder / "run").mkdir()
            save_file({"weight": torch.zeros(2)}, folder / "run" / "model.safetensors")
    finally:
        os.umask(before)
    out = tmp_path / "below" / "out"
    modes = {path: path.stat().st_mode & 0o777 for path in (out, *out.rglob("*"))}
    assert modes == {
        out: 0o750,
        out / "run": 0o750,
        out / "run" / "model.safetensors": 0o640,
    }


def test_an_export_that_cannot_be_replaced_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path / "out", "one")
    with monkeypatch.context() as patch:
        _fail_to_rename(patch, "new", "out.partial")
        with pytest.raises(AttuneError, match="out: cannot be written: Input/output error"):
            _write(tmp_path / "out", "two")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "weights").read_text() == "one"
    # Nor is it deleted where it cannot be put back.
    with monkeypatch.context() as patch:
        _fail_to_rename(patch, "new", "old")
        with pytest.raises(AttuneError, match="earlier export cannot be put back"):
            _write(tmp_path / "out", "two")
    (kept,) = tmp_path.glob("out.partial-*/old/weights")
    assert kept.read_text() == "one"
