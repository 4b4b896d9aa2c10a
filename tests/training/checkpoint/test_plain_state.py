"""A checkpoint's state is read as it was written, or not at all where reading it could run code."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from tiny_runs import MakesFolder

from common.errors import AttuneError
from training.checkpoint.plain_state import load_state


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that there is no process group
        yield


def _values() -> dict[str, Any]:
    group = {"lr": 1e-3, "betas": (0.9, 0.95), "fused": None, "foreach": False, "params": ["a"]}
    return {"step": 7, "optimizer": {"param_groups": [group]}, "name": "lm"}


def test_tensors_of_every_type_and_plain_values_come_back(tmp_path: Path) -> None:
    types = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool)
    tensors = {str(dtype): torch.ones(2, 3, dtype=dtype) for dtype in types}
    dcp.save(_values() | {"model": tensors}, checkpoint_id=tmp_path / "state", no_dist=True)
    found: dict[str, Any] = {
        "step": 0,
        "optimizer": {"param_groups": [dict.fromkeys(_values()["optimizer"]["param_groups"][0])]},
        "name": "",
        "model": {name: torch.zeros_like(tensor) for name, tensor in tensors.items()},
    }
    load_state(found, tmp_path / "state", no_dist=True)
    model = found.pop("model")
    assert found == _values()
    assert all(torch.equal(model[name], tensor) for name, tensor in tensors.items())


def _refusal(folder: Path) -> str:
    with pytest.raises(AttuneError) as caught:
        load_state({"step": 0}, folder, no_dist=True)
    return str(caught.value)


def test_metadata_names_nothing_that_could_be_called(tmp_path: Path) -> None:
    folder, marker = tmp_path / "state", tmp_path / "marker"
    dcp.save({"step": 7}, checkpoint_id=folder, no_dist=True)
    path = folder / ".metadata"
    for harmful in (
        pickle.dumps(MakesFolder(marker)),
        # Names with dots reach through modules that may be named.
        pickle.dumps(("x", MakesFolder(marker)), protocol=2),
        b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93.",
        b"ctorch\nload\n.",
        b"cbuiltins\neval\n.",
    ):
        path.write_bytes(harmful)
        # Those of single processes are no way around it.
        (folder / "__0.metadata").write_bytes(harmful)
        assert _refusal(folder).startswith(f"{path}: names ")
    path.write_bytes(pickle.dumps([1]))
    assert "holds a list, expected DCP's metadata" in _refusal(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"state/\.metadata"):
        load_state({"step": 0}, folder, no_dist=True)
    assert not marker.exists()


def test_a_value_that_would_run_code_is_refused(tmp_path: Path) -> None:
    folder, marker = tmp_path / "state", tmp_path / "marker"
    dcp.save({"step": MakesFolder(marker)}, checkpoint_id=folder, no_dist=True)
    assert _refusal(folder) == f"{folder}: step is not a plain value; reading it could run code"
    assert not marker.exists()
