"""Benchmarks that need a machine of their own still run through on any."""

from __future__ import annotations

import pytest
import torch

from benchmarks import lm_gpu
from common.errors import AttuneError
from training import distributed


@pytest.mark.heavy
@pytest.mark.skipif(not distributed._has_compiler(torch.device("cpu")), reason="no C++ compiler")
def test_the_gpu_benchmark_runs_through_on_a_cpu() -> None:
    torch.set_num_threads(1)
    found = lm_gpu.run("smallest", frames=20, clips=2, seconds=0.2, device="cpu")
    names = ["matmul", "matmul, compiled", "sdpa", "sdpa, compiled"]
    assert list(found["variants"]) == [*(f"ours, {name}" for name in names), "Hugging Face"]
    losses = [one["loss"] for one in found["variants"].values()]
    assert all(one["steps"] >= 1 and 0 < one["mfu"] < 2 for one in found["variants"].values())
    assert all(0 < loss < 9 for loss in losses)
    assert 0 <= found["loader_wait"] < 1 and found["tokens_per_s_to_hugging_face"] > 0
    lines = lm_gpu.table(found)
    assert len(lines) == 9 and "Hugging Face" in lines[-3]


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(AttuneError, match="no GPU here"):
        lm_gpu.run()


def test_the_search_finds_the_largest_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    for most in (1, 2, 3, 7, 48, 100, 1024, 5000):
        tried: list[int] = []

        def fits(make: object, arch: object, clips: int, *rest: object, most: int = most) -> bool:
            tried.append(clips)  # noqa: B023
            return clips <= most

        monkeypatch.setattr(lm_gpu, "_fits", fits)
        found = lm_gpu._largest(None, None, 500, gpu)  # type: ignore[arg-type]
        assert found <= most and found > min(most, lm_gpu.MOST) * 7 / 8 - 1
        assert len(tried) == len(set(tried)) < 20
    monkeypatch.setattr(lm_gpu, "_fits", lambda *_: False)
    with pytest.raises(AttuneError, match="not even one"):
        lm_gpu._largest(None, None, 500, gpu)  # type: ignore[arg-type]
