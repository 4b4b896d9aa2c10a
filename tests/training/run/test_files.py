"""Weights can be read by whoever the umask lets read files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from training.run.files import as_any_file


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_weights_get_the_mode_that_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "model.safetensors"
    before = os.umask(umask)
    try:
        save_file({"weight": torch.zeros(2)}, path)
        as_any_file(path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    assert list(tmp_path.iterdir()) == [path]
