"""How processes are grouped, and deterministic mode."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from common.config import load_recipe
from common.errors import AttuneError
from training.distributed import check_divisible, shard_group, start
from training.train import train


def test_groups_that_make_no_sense_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def group(size: int, local: int, sharding: str = "hybrid") -> int:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
        return shard_group(sharding, size)

    assert group(16, 8) == 8
    assert group(16, 8, "full") == 16
    assert group(1, 1) == 1  # on one process there is nothing to shard
    with pytest.raises(AttuneError, match="one node holds all 8 processes"):
        group(8, 8)
    with pytest.raises(AttuneError, match="12 processes do not divide into nodes of 8"):
        group(12, 8)


@pytest.mark.parametrize(
    ("batch", "processes", "sizes"), [(192, 5, "190 or 195"), (16, 3, "15 or 18"), (2, 3, "3")]
)
def test_a_batch_that_cannot_be_shared_names_the_nearest_that_can(
    batch: int, processes: int, sizes: str
) -> None:
    check_divisible(batch, 1, "lm.batch_size")
    with pytest.raises(AttuneError) as refused:
        check_divisible(batch, processes, "lm.batch_size")
    assert str(refused.value) == (
        f"lm.batch_size ({batch}) must be divisible by the number of processes ({processes}); "
        f"try {sizes}"
    )


@pytest.fixture
def forgotten() -> Iterator[None]:
    """What deterministic mode sets, as it was, after a test."""
    cudnn, utils = torch.backends.cudnn, torch.utils.deterministic
    before = cudnn.deterministic, cudnn.benchmark, utils.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
    cudnn.deterministic, cudnn.benchmark, utils.fill_uninitialized_memory = before


def test_deterministic_mode(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: None
) -> None:
    overrides = [f"run_dir={tmp_path}", "lm.rr.apply=always", "lm.steps=4"]
    for value in ("", ":4096:8"):
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", value)
        train(load_recipe(tiny_root / "recipe.yaml", [*overrides, f"lm.run=run{len(value)}"]))
        assert torch.are_deterministic_algorithms_enabled() == bool(value)
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark


def test_more_processes_than_gpus_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in (("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    threads = torch.get_num_threads()
    with pytest.raises(AttuneError, match="2 processes on this machine and 1 GPUs"):
        start()
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("processes", "environment", "asked", "expected"),
    [(1, None, 0, 8), (1, "3", 0, None), (2, "1", 0, 4), (2, None, 0, 4), (2, "1", 3, 3)],
)
def test_processes_share_the_cores(
    processes: int,
    environment: str | None,
    asked: int,
    expected: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torchrun says one thread for each of several; nobody asked for that."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    if environment is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    monkeypatch.setattr("training.distributed.usable_cores", lambda: 8)
    found: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    start(asked)
    assert found == ([] if expected is None else [expected])
