"""Prompt embedding: a Ray Data map over the chunks that are missing in the text cache.

An actor with the text encoder embeds a chunk and writes it to the store itself, so states never
pass through the driver.  A chunk is finished once its index exists, so a killed run resumes with
the chunks that are missing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any

import pyarrow as pa

from common.config import TextEncoderConfig
from common.errors import AttuneError
from common.storage import open_store
from common.text_encoder import TextEncoder, load_text_encoder
from pipeline.datadir.frozen_plan import FrozenPlan, load_plan
from pipeline.datadir.text_cache import TextCache
from pipeline.ray_errors import describe, find_mistake


class EmbedChunks:
    """Holds the encoder; Ray Data calls it with batches of chunks."""

    def __init__(
        self, data_dir: str, config: TextEncoderConfig, plan_hash: str, threads: int, device: str
    ) -> None:
        self.data_dir, self.config, self.plan_hash = data_dir, config, plan_hash
        self.threads, self.device = threads, device

    @cached_property
    def plan(self) -> FrozenPlan:
        """The plan, which has the prompts.

        Raises:
            AttuneError: another run replaced the plan meanwhile.
        """
        plan = load_plan(open_store(self.data_dir))
        if plan is None or plan.plan_hash != self.plan_hash:
            raise AttuneError(f"{self.data_dir}: plan {self.plan_hash} is gone; run again")
        return plan

    @cached_property
    def cache(self) -> TextCache:
        return TextCache(self.plan.store, self.plan.info["inputs"]["text_encoder_id"])

    @cached_property
    def encoder(self) -> TextEncoder:
        """The text encoder, loaded by the first chunk.

        Ray reports an error of a call to the driver, but not an error of an actor's creation.

        Raises:
            AttuneError: this node has another encoder than the plan was made for.
        """
        import torch

        torch.set_num_threads(self.threads)
        encoder = load_text_encoder(self.config, self.device)
        expected = self.plan.info["inputs"]["text_encoder_id"]
        if encoder.text_encoder_id != expected:
            raise AttuneError(
                f"text encoder {self.config.path} is {encoder.text_encoder_id} on a worker, the "
                f"plan was made for {expected}; give every node the same encoder"
            )
        return encoder

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        done = []
        for name, groups in zip(batch["chunk"], batch["row_groups"], strict=True):
            prompts = self.plan.prompts_of(str(name), map(int, groups))
            self.cache.write_chunk(str(name), prompts, self.encoder.encode(prompts))
            done.append(len(prompts))
        return {"prompts": done}


def embed_chunks(
    plan: FrozenPlan,
    config: TextEncoderConfig,
    *,
    workers: int,
    cpus: int,
    gpus: float,
    attempts: int,
    on_progress: Callable[[int], None],
) -> None:
    """Embed, on a running Ray, every chunk of a plan's prompts that is not in the cache.

    Args:
        config: the encoder, with a path that is valid on workers.
        workers: at most so many at once, each with `cpus` CPUs and `gpus` GPUs.
        attempts: how often the chunks that are left are tried when workers die.
        on_progress: called with the number of finished prompts.

    Raises:
        AttuneError: the encoder cannot be loaded, or workers died on every attempt.
    """
    import ray.data

    done = 0
    for attempt in range(1, attempts + 1):
        chunks = plan.missing_chunks()
        if not chunks:
            return
        device = "cuda" if gpus else "cpu"
        # One block per chunk from the start: a repartition is a task that would wait for a CPU
        # while the actors hold all of them.
        blocks = [
            pa.table({"chunk": [chunk.name], "row_groups": [list(chunk.row_groups)]})
            for chunk in chunks
        ]
        with warnings.catch_warnings():
            # Ray 2.60 still accepts max_restarts here and has no other place for it yet.
            warnings.simplefilter("ignore", ray.util.annotations.RayDeprecationWarning)
            embedded = ray.data.from_arrow(blocks).map_batches(
                EmbedChunks,
                fn_constructor_args=(plan.store.uri, config, plan.plan_hash, cpus, device),
                batch_size=1,
                num_cpus=cpus,
                num_gpus=gpus,
                concurrency=min(workers, len(chunks)),
                max_restarts=0,  # Ray Data restarts without limit; this loop has one
            )
        try:
            for batch in embedded.iter_batches(batch_size=None):
                done += int(sum(batch["prompts"]))
                on_progress(done)
        except ray.exceptions.RayError as error:
            mistake = find_mistake(error)
            if mistake is not None:
                raise mistake from None
            if attempt == attempts:
                raise AttuneError(
                    f"embedding failed {attempts} times; run again to resume: {describe(error)}"
                ) from error
