"""`python -m pipeline` without Ray: this process does the workers' work itself, one call at a time.

python pipeline_in_turn.py ARGUMENTS...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import ray

import pipeline.run
from common.cli import run_app
from common.config import TextEncoderConfig
from common.storage import Store
from pipeline.cli import app
from pipeline.datadir.frozen_plan import FrozenPlan
from pipeline.encode.dispatch import Task
from pipeline.encode.embed import EmbedChunks
from pipeline.encode.resources import Resources


def embed(plan: FrozenPlan, encoder: TextEncoderConfig, *rest: object) -> None:
    """In place of `pipeline.run.embed`."""
    chunks = list(plan.missing_chunks())
    embedder = EmbedChunks(plan.store.uri, encoder, plan.plan_hash, 1, "cpu")
    groups = [list(chunk.row_groups) for chunk in chunks]
    embedder({"chunk": [chunk.name for chunk in chunks], "row_groups": groups})


class InTurn:
    """In place of `Dispatch`: one worker, one shard at a time, no second attempt."""

    def __init__(
        self,
        start_actor: Callable[[], Any],
        store: Store,
        attempts: int,
        on_done: Callable[[dict[str, Any]], None],
        on_tick: Callable[[], None],
    ) -> None:
        self._start_actor, self._on_done = start_actor, on_done

    def run(self, tasks: Iterator[Task], workers: int) -> dict[int, str]:
        worker = self._start_actor()
        for task in tasks:
            self._on_done(worker.encode_shard(*task))
        return {}


if __name__ == "__main__":
    ray.remote = lambda **options: lambda kind: SimpleNamespace(remote=kind)
    pipeline.run.ray_session = lambda store: nullcontext("none")  # type: ignore[assignment]
    pipeline.run.plan_resources = lambda *asked: Resources(1, 1, 0)
    pipeline.run.embed = embed  # type: ignore[assignment]
    pipeline.run.Dispatch = InTurn  # type: ignore[misc, assignment]
    run_app(app)
