"""The text cache: each prompt embedded once, found again bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from in_process import fake_states

from common.storage import open_store
from pipeline.datadir.text_cache import TextCache


def plan_of(*clips: list[str]) -> pa.Table:
    return pa.table({"prompts": pa.array(clips, pa.list_(pa.string()))})


def embed(cache: TextCache, assigned: pa.Table) -> int:
    """Embed the missing chunks; returns the number of their prompts."""
    missing: dict[str, list[str]] = {}
    done = cache.chunks()
    for row in assigned.to_pylist():
        if row["chunk"] not in done:
            missing.setdefault(row["chunk"], []).append(row["prompt"])
    for name, prompts in missing.items():
        cache.write_chunk(name, prompts, [fake_states(prompt) for prompt in prompts])
    return sum(map(len, missing.values()))


def test_each_unique_prompt_is_embedded_once_and_read_back(tmp_path: Path) -> None:
    cache = TextCache(open_store(tmp_path), "encoder")
    prompts = [f"dog {'bark ' * (i % 7)}{i}" for i in range(50)]
    plan = plan_of(*([prompts[i], prompts[i // 2]] for i in range(50)), [])
    assigned, chunks = cache.assign_chunks(plan, chunk_size=8)
    assert assigned["prompt"].to_pylist() == prompts  # in the order of the plan
    assert embed(cache, assigned) == 50
    assert embed(cache, assigned) == 0
    assert len(cache.chunks()) == 7
    for names, places in zip(plan["prompts"].to_pylist(), chunks.to_pylist(), strict=True):
        states = cache.read(dict(zip(names, places, strict=True)))
        assert states.keys() == set(names)
        for name in names:
            np.testing.assert_array_equal(states[name], fake_states(name))


def test_a_part_of_a_table_is_assigned_like_a_table(tmp_path: Path) -> None:
    cache = TextCache(open_store(tmp_path), "encoder")
    whole = plan_of(["a"], ["b", "c"], ["d"], ["b"])
    assigned, chunks = cache.assign_chunks(whole.slice(1), chunk_size=2)
    assert assigned["prompt"].to_pylist() == ["b", "c", "d"]
    assert [len(places) for places in chunks.to_pylist()] == [2, 1, 1]


def test_a_chunk_without_its_index_is_embedded_again(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    cache = TextCache(store, "encoder")
    assigned, _ = cache.assign_chunks(plan_of(["a", "b", "c"]), chunk_size=2)
    embed(cache, assigned)
    lost = next(key for key, _ in store.list("text") if key.endswith(".parquet"))
    store.delete(lost)
    assert embed(cache, assigned) in (1, 2)
    assert cache.read({row["prompt"]: row["chunk"] for row in assigned.to_pylist()}).keys() == {
        "a", "b", "c",
    }  # fmt: skip


def test_a_chunk_without_its_states_is_embedded_again(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    cache = TextCache(store, "encoder")
    assigned, _ = cache.assign_chunks(plan_of(["a", "b"]), chunk_size=2)
    embed(cache, assigned)
    store.delete(next(key for key, _ in store.list("text") if key.endswith(".f16")))
    assert cache.chunks() == set()
    assert embed(cache, assigned) == 2
    chunk = assigned["chunk"][0].as_py()
    assert cache.read({"a": chunk, "b": chunk}).keys() == {"a", "b"}


def test_another_plan_keeps_what_is_cached(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    first, _ = TextCache(store, "encoder").assign_chunks(plan_of(["a", "b", "c"]), chunk_size=2)
    embed(TextCache(store, "encoder"), first)
    later = TextCache(store, "encoder")
    second, chunks = later.assign_chunks(plan_of(["c"], ["d", "b"]), chunk_size=2)
    assert second["prompt"].to_pylist() == ["d", "b", "c"]  # new ones first, then by chunk
    assert embed(later, second) == 1
    assert set(later.read({"c": chunks.to_pylist()[0][0]})) == {"c"}
    other = TextCache(store, "another encoder")
    assert embed(other, other.assign_chunks(plan_of(["b"]), chunk_size=2)[0]) == 1


def test_an_index_is_read_without_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of a dataset may hold its bytes until Python shuts down, which then aborts."""
    cache = TextCache(open_store(tmp_path), "encoder")
    assigned, _ = cache.assign_chunks(plan_of(["a"]), chunk_size=2)
    embed(cache, assigned)

    def made(*arguments: object, **options: object) -> None:
        raise AssertionError("a dataset was made")

    monkeypatch.setattr("pyarrow.parquet.core.ParquetDataset", made)
    assert cache.read({"a": assigned["chunk"][0].as_py()}).keys() == {"a"}


def test_missing_chunks_and_prompts_are_errors(tmp_path: Path) -> None:
    cache = TextCache(open_store(tmp_path), "encoder")
    assigned, _ = cache.assign_chunks(plan_of(["a"]), chunk_size=2)
    chunk = assigned["chunk"][0].as_py()
    with pytest.raises(FileNotFoundError):
        cache.read({"a": chunk})
    embed(cache, assigned)
    with pytest.raises(KeyError, match="'b' is not in text chunk"):
        cache.read({"a": chunk, "b": chunk})
