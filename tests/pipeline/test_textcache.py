"""The text cache: each prompt embedded once, found again bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from in_process import fake_states

from common.storage import open_store
from pipeline.embed import missing_chunks
from pipeline.textcache import TextCache


def plan_of(*prompts: str) -> pa.Table:
    return pa.table({"prompts": [list(prompts), list(prompts[:1])]})


def embed(cache: TextCache, assigned: pa.Table) -> int:
    missing = missing_chunks(assigned, cache).to_pylist()
    for row in missing:
        cache.write_chunk(row["chunk"], row["prompts"], [fake_states(p) for p in row["prompts"]])
    return sum(len(row["prompts"]) for row in missing)


def test_each_unique_prompt_is_embedded_once_and_read_back(tmp_path: Path) -> None:
    cache = TextCache(open_store(tmp_path), "encoder")
    prompts = [f"dog {'bark ' * (i % 7)}{i}" for i in range(50)]
    assigned = cache.assign_chunks(plan_of(*prompts), chunk_size=8)
    assert assigned["prompt"].to_pylist() == sorted(prompts)
    assert embed(cache, assigned) == 50
    assert embed(cache, assigned) == 0
    states = cache.read(cache.spans(cache.chunks()))
    for prompt in prompts:
        np.testing.assert_array_equal(states[prompt], fake_states(prompt))


def test_a_chunk_without_its_index_is_embedded_again(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    cache = TextCache(store, "encoder")
    assigned = cache.assign_chunks(plan_of("a", "b", "c"), chunk_size=2)
    embed(cache, assigned)
    lost = next(key for key, _ in store.list("text") if key.endswith(".parquet"))
    store.delete(lost)
    assert embed(cache, assigned) in (1, 2)
    assert set(cache.spans(cache.chunks())) == {"a", "b", "c"}


def test_another_plan_keeps_what_is_cached(tmp_path: Path) -> None:
    cache = TextCache(open_store(tmp_path), "encoder")
    first = cache.assign_chunks(plan_of("a", "b", "c"), chunk_size=2)
    embed(cache, first)
    second = cache.assign_chunks(plan_of("b", "c", "d"), chunk_size=2)
    assert embed(cache, second) == 1
    other = TextCache(cache.store, "another encoder")
    assert embed(other, other.assign_chunks(plan_of("b"), chunk_size=2)) == 1
