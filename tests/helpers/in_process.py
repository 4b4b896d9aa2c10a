"""The pipeline's stages called directly, without Ray, on made-up text states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from common.config import Recipe
from common.storage import open_store
from pipeline.config import PipelineConfig
from pipeline.datadir.frozen_plan import FrozenPlan
from pipeline.datadir.text_cache import TextCache
from pipeline.encode.resources import Resources
from pipeline.encode.worker import EncodeSettings, EncodeWorker
from pipeline.run import audio_roots

DIM = 8
Encode = Callable[[Sequence[str]], list[np.ndarray]]
"""Prompts to text states, float16 [words, width] each."""


def fake_states(prompt: str) -> np.ndarray:
    """float16 [words, DIM], a function of the prompt."""
    rng = np.random.default_rng(list(prompt.encode()))
    return rng.standard_normal((len(prompt.split()), DIM)).astype(np.float16)


def make_worker(plan: FrozenPlan, recipe: Recipe, **changes: object) -> EncodeWorker:
    inputs = plan.info["inputs"]
    settings = {
        "data_dir": plan.store.uri,
        "plan_hash": plan.plan_hash,
        "codec": recipe.codec.path,
        "codec_id": inputs["codec_id"],
        "text_encoder_id": inputs["text_encoder_id"],
        "min_duration_s": 0.5,
        "max_duration_s": 100.0,
        "silence_dbfs": -80.0,
        "threads": 1,
        "device": "cpu",
        "audio_folders": plan.audio_folders(
            audio_roots(recipe.section("pipeline", PipelineConfig).catalogs)
        ),
    }
    return EncodeWorker(EncodeSettings(**(settings | changes)))  # type: ignore[arg-type]


def fake_encode(prompts: Sequence[str]) -> list[np.ndarray]:
    return [fake_states(prompt) for prompt in prompts]


def fill_cache(plan: FrozenPlan, encode: Encode = fake_encode) -> TextCache:
    cache = TextCache(plan.store, plan.info["inputs"]["text_encoder_id"])
    for chunk in plan.missing_chunks():
        prompts = plan.prompts_of(chunk.name, chunk.row_groups)
        cache.write_chunk(chunk.name, prompts, encode(prompts))
    return cache


def encode_all(plan: FrozenPlan, recipe: Recipe, encode: Encode = fake_encode) -> None:
    fill_cache(plan, encode)
    worker = make_worker(plan, recipe)
    for shard, rows in plan.shards():
        worker.encode_shard(shard, rows)


def without_ray(
    monkeypatch: pytest.MonkeyPatch,
    embed: Callable[..., object] = lambda plan, *rest: fill_cache(plan),
) -> None:
    """`run_pipeline` in this process: its own order of steps, with the stages called directly."""

    def encode(
        plan: FrozenPlan, settings: EncodeSettings, resources: object, committed: set[int]
    ) -> dict[int, str]:
        worker = EncodeWorker(settings)
        for shard, rows in plan.shards(skip=committed):
            worker.encode_shard(shard, rows)
        return {}

    monkeypatch.setattr("pipeline.run.pipeline_session", lambda store: nullcontext("none"))
    monkeypatch.setattr("pipeline.run.plan_resources", lambda *asked: Resources(1, 1, 0))
    monkeypatch.setattr("pipeline.run.embed", embed)
    monkeypatch.setattr("pipeline.run.encode", encode)


def copy_to_bucket(folder: Path, uri: str) -> None:
    store = open_store(uri)
    for path in folder.rglob("*"):
        if path.is_file():
            store.write(path.relative_to(folder).as_posix(), path)
