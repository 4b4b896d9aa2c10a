"""Clips that share a codec batch: the same samples in the same order, bytes that repeat."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from calls import freeze
from in_process import fill_cache, make_worker

from common.config import load_recipe
from common.shards import ShardDataset
from pipeline.encode.finalize import finalize


@pytest.fixture
def even_corpus(tmp_path: Path) -> Path:
    """26 clips of one second, some of another length, one that is refused in between."""
    root = tmp_path / "corpus"
    root.mkdir()
    rng = np.random.default_rng(0)
    rows = ["file_name,text"]
    for i in range(40):
        seconds = 1.0 if i % 3 else 0.8 + i / 100
        t = np.arange(int(16_000 * seconds)) / 16_000
        wave = 0.4 * np.sin(2 * np.pi * (150 + 30 * i) * t) + 0.02 * rng.standard_normal(t.size)
        wave = np.zeros_like(wave) if i == 20 else wave
        soundfile.write(root / f"{i}.wav", wave, 16_000)
        rows.append(f"{i}.wav,tone {'abcdefgh'[i % 8]}")
    (root / "metadata.csv").write_text("\n".join(rows) + "\n")
    return root


def encode(recipe_path: Path, out: Path, batch: int) -> dict[str, bytes]:
    overrides = [f"data_dir={out}", f"pipeline.batch_clips={batch}", "pipeline.clips_per_shard=16"]
    recipe = load_recipe(recipe_path, overrides)
    plan, _ = freeze(recipe)
    fill_cache(plan)
    worker = make_worker(plan, recipe, batch_clips=batch)
    for shard, rows in plan.shards():
        worker.encode_shard(shard, rows)
    finalize(plan, recipe.name, recipe.codec.path)
    return {path.name: path.read_bytes() for path in (out / "shards").iterdir()}


def test_batches_change_nothing_but_a_few_codes(
    even_corpus: Path, recipe_text: Callable[..., str], tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text(tmp_path / "data", f"dataset: audiofolder, root: {even_corpus}"))
    encode(path, tmp_path / "alone", 1)
    first = encode(path, tmp_path / "first", 4)
    again = encode(path, tmp_path / "again", 4)
    assert first == again  # name for name, byte for byte
    alone, together = (ShardDataset.open(tmp_path / name) for name in ("alone", "first"))
    assert len(alone) == len(together) == 39
    equal = []
    for i in range(39):
        a, b = alone.read(i), together.read(i)
        assert a.record["sample_id"] == b.record["sample_id"] and a.codes.shape == b.codes.shape
        assert [state.tobytes() for state in a.text] == [state.tobytes() for state in b.text]
        equal.append((a.codes == b.codes).mean())
    assert np.mean(equal) >= 0.999
