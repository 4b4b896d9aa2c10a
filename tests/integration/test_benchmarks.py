"""Benchmarks that need a machine of their own still run through on any."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from benchmarks import lm_gpu
from benchmarks.measure import in_turns
from common.errors import AttuneError
from training import distributed


@pytest.mark.heavy
@pytest.mark.skipif(not distributed._has_compiler(torch.device("cpu")), reason="no C++ compiler")
def test_the_gpu_benchmark_runs_through_on_a_cpu() -> None:
    torch.set_num_threads(1)
    shape = {"d_model": 64, "n_layers": 2, "n_heads": 2}
    found = lm_gpu.run(torch.device("cpu"), shape, frames=20, clips=2, seconds=0.2)
    names = ["matmul", "matmul, compiled", "sdpa", "sdpa, compiled"]
    assert list(found["variants"]) == [*(f"ours, {name}" for name in names), "Hugging Face"]
    losses = [one["loss"] for one in found["variants"].values()]
    assert all(one["steps"] >= 1 and 0 < one["mfu"] < 2 for one in found["variants"].values())
    assert all(0 < loss < 9 for loss in losses)
    assert 0 <= found["loader_wait"] < 1 and found["ratio"] > 0
    assert [title for title, _, _ in lm_gpu.rows(found) if "Hugging Face" in title] == [
        "  Hugging Face: MFU",
        "  tokens/s of the best / Hugging Face's",
    ]


def test_without_a_gpu_the_gpu_benchmark_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found, ((_, value, note),) = lm_gpu.bench()
    assert (found, value, note) == ({"measured": False}, "not measured", "no GPU here")


def test_the_search_finds_the_largest_micro_batch() -> None:
    for most in (1, 2, 3, 7, 48, 100, 1024, 5000):
        tried: list[int] = []

        def fits(clips: int, most: int = most) -> bool:
            tried.append(clips)  # noqa: B023
            return clips <= most

        found = lm_gpu.largest(fits)
        assert found <= most and found > min(most, lm_gpu.MOST) * 7 / 8 - 1
        assert len(tried) == len(set(tried)) < 20
    with pytest.raises(AttuneError, match="not even one"):
        lm_gpu.largest(lambda clips: False)


def test_runs_take_turns() -> None:
    order: list[str] = []
    times = iter(range(100))
    runs = {name: partial(order.append, name) for name in "ab"}
    best = in_turns(runs, rounds=2, warm_up=1, clock=lambda: next(times))
    assert "".join(order) in ("abbaab", "baabba") and best == {"a": 1, "b": 1}
