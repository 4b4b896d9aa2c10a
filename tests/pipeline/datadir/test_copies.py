"""A sound under two names: kept in the strictest split, counted within one."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from calls import Call, freeze
from in_process import encode_all

from common.config import load_recipe
from common.shards import ShardDataset
from common.storage import open_store
from pipeline.datadir.copies import Copies, CopyFinder
from pipeline.encode.finalize import finalize
from pipeline.inspect.status import read_refused, read_status
from pipeline.inspect.verify import verify_shards

TWIN = "the same sound as {} in d {}"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def row(name: str, split: str, wave: str, file: str, start: float | None = None) -> dict[str, Any]:
    """A sample named `name`; a part of 10 s if it has a start."""
    return {
        "sample_id": digest(name)[:32], "dataset": "d", "native_id": name, "split": split,
        "start_s": start, "end_s": None if start is None else start + 10,
        "wave_sha256": digest(wave), "source_sha256": digest(file),
    }  # fmt: skip


def found(rows: list[dict[str, Any]]) -> Copies:
    finder = CopyFinder()
    for start in range(0, len(rows), 3):  # shards
        finder.add(rows[start : start + 3], {"samples": rows[start : start + 3]})
    return finder.find()


@pytest.mark.parametrize("seed", range(4))
def test_the_strictest_split_keeps_a_sound_whatever_the_order(seed: int) -> None:
    rows = [
        row("a", "train", "1", "x"), row("b", "test", "1", "y"), row("c", "valid", "1", "z"),
        row("d", "train", "2", "u", 0.0), row("e", "test", "3", "u", 9.9),  # 0.1 s of both
        row("f", "train", "4", "u", 19.9), row("g", "train", "5", "u", 40.0),
        row("h", "valid", "6", "v"), row("i", "train", "7", "v", 100.0),  # a whole file and a part
        row("j", "train", "8", "s"), row("k", "train", "8", "t"), row("l", "train", "8", "t"),
        row("m", "test", "9", "q"), row("n", "test", "9", "r"), row("o", "train", "9", "r"),
    ]  # fmt: skip
    random.Random(seed).shuffle(rows)
    copies = found(rows)
    names = {row["sample_id"]: row["native_id"] for row in rows}
    assert {names[key]: detail for key, detail in copies.leaks.items()} == {
        "a": TWIN.format("b", "test"), "c": TWIN.format("b", "test"),
        "d": TWIN.format("e", "test"), "i": TWIN.format("h", "valid"),
        "o": TWIN.format("m", "test"),
    }  # fmt: skip
    assert copies.duplicates == {"d": 3}  # two of j, k, l and one of m, n
    assert found([]) == Copies()


@pytest.fixture
def data(recipe_text: Callable[..., str], tmp_path: Path) -> Path:
    """A finished run over one sound in train (wav) and test (flac), and two equal train sounds."""
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    rng = np.random.default_rng(0)
    one, two = (rng.integers(-9999, 9999, 16000).astype(np.int16) for _ in range(2))
    soundfile.write(sounds / "one.wav", one, 16000)
    soundfile.write(sounds / "copy.flac", one, 16000)
    for name in ("two.wav", "again.wav"):
        soundfile.write(sounds / name, two, 16000)
    rows = ("one.wav,Rain,train", "copy.flac,Rain,test", "two.wav,A dog,train", "again.wav,A,train")
    (sounds / "metadata.csv").write_text("\n".join(("file_name,text,split", *rows)))
    path = tmp_path / "recipe.yaml"
    catalog = f"dataset: audiofolder, root: {sounds}, name: own"
    path.write_text(recipe_text(tmp_path / "data", catalog) + "  text: {policy: plain}\n")
    recipe = load_recipe(path)
    plan, _ = freeze(recipe)
    assert plan.n_planned == 4
    encode_all(plan, recipe)
    finalize(plan, recipe.name, recipe.codec.path)
    return tmp_path / "data"


def test_a_copy_of_a_test_sound_is_left_out_and_everything_agrees(
    data: Path, pipeline: Call
) -> None:
    store = open_store(data)
    read = [sample.record["native_id"] for sample in ShardDataset.open(data)]
    assert sorted(read) == ["again.wav", "copy.flac", "two.wav"]
    (refusal,) = pq.read_table(data / "quarantine.parquet").to_pylist()
    assert (refusal["native_id"], refusal["stage"], refusal["reason"]) == (
        "one.wav", "split", "leakage",
    )  # fmt: skip
    assert refusal["detail"] == "the same sound as copy.flac in own test"
    summary = json.loads((data / "summary.json").read_text())
    assert (summary["n_samples"], summary["n_left_out"], summary["n_duplicates"]) == (3, 1, 1)
    assert summary["rejected_by_reason"] == {"leakage": 1}
    (listed,) = json.loads((data / "shards.json").read_text())["shardlist"]
    assert listed["nsamples"] == 4  # of the tar
    assert verify_shards(store)["problems"] == []
    status = read_status(store)
    assert status["clips"] == 3 and status["stages"]["finalize"]["left_out"] == 1
    assert [row["native_id"] for row in read_refused(store)] == ["one.wav"]
    recipe = str(data.parent / "recipe.yaml")
    code, out, _ = pipeline("status", "--config", recipe)
    assert code == 0 and "1 copies of held-out clips left out" in out
    _, out, _ = pipeline("status", "--refused", "--config", recipe)
    assert out.endswith(
        "0 refused while encoding, 0 while planning, 1 copies left out after encoding\n"
    )
    _, out, _ = pipeline("shards", "stats", "--config", recipe)
    assert "copies     1 clips repeat a sound of their own split" in out


def test_a_manifest_that_has_a_copy_of_a_test_sound_is_a_problem(data: Path) -> None:
    before = (data / "manifest.parquet").read_bytes()
    quarantine = pq.read_table(data / "quarantine.parquet")
    pq.write_table(quarantine.slice(0, 0), data / "quarantine.parquet")
    (problem,) = verify_shards(open_store(data))["problems"]
    assert problem["where"] == "quarantine.parquet" and "has no row" in problem["problem"]
    assert (data / "manifest.parquet").read_bytes() == before
