"""Prompt embedding: a Ray Data map over the chunks of the text cache that are not there yet.

Each chunk is embedded by an actor that holds the text encoder, and written where it is made: states
never pass through the driver.  A chunk is finished once its index is there, so a killed run goes on
with the chunks it had not reached.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from common.config import TextEncoderConfig
from common.errors import AttuneError
from common.storage import open_store
from common.text_encoder import TextEncoder, load_text_encoder
from pipeline.textcache import TextCache


class EmbedChunks:
    """Holds the encoder; called with batches of chunks by Ray Data."""

    def __init__(
        self, data_dir: str, config: TextEncoderConfig, text_encoder_id: str, threads: int,
        device: str,
    ) -> None:  # fmt: skip
        self.config, self.text_encoder_id = config, text_encoder_id
        self.threads, self.device = threads, device
        self.cache = TextCache(open_store(data_dir), text_encoder_id)

    @cached_property
    def encoder(self) -> TextEncoder:
        """Loaded by the first chunk: Ray passes on what a call raises, not what a creation does.

        Raises:
            AttuneError: this node has another encoder than the plan was made for.
        """
        import torch

        torch.set_num_threads(self.threads)
        encoder = load_text_encoder(self.config, self.device)
        if encoder.text_encoder_id != self.text_encoder_id:
            raise AttuneError(
                f"text encoder {self.config.path} is {encoder.text_encoder_id} on a worker, the "
                f"plan was made for {self.text_encoder_id}; give every node the same encoder"
            )
        return encoder

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for name, prompts in zip(batch["chunk"], batch["prompts"], strict=True):
            texts = [str(prompt) for prompt in prompts]
            self.cache.write_chunk(str(name), texts, self.encoder.encode(texts))
        return {"prompts": [len(prompts) for prompts in batch["prompts"]]}


def missing_chunks(prompts: pa.Table, cache: TextCache) -> pa.Table:
    """The chunks still to embed: `chunk`, and its `prompts` in the plan's order."""
    done = pa.array(sorted(cache.chunks()), pa.string())
    rows = prompts.filter(pc.invert(pc.is_in(prompts["chunk"], value_set=done)))
    chunks: dict[str, list[str]] = {}
    for prompt, chunk in zip(rows["prompt"].to_pylist(), rows["chunk"].to_pylist(), strict=True):
        chunks.setdefault(chunk, []).append(prompt)
    return pa.table(
        {"chunk": list(chunks), "prompts": list(chunks.values())},
        schema=pa.schema([("chunk", pa.string()), ("prompts", pa.list_(pa.string()))]),
    )


def embed_chunks(
    prompts: pa.Table,
    cache: TextCache,
    config: TextEncoderConfig,
    text_encoder_id: str,
    *,
    workers: int,
    cpus: int,
    gpus: float,
    attempts: int,
    on_progress: Callable[[int, int], None],
) -> None:
    """Embed, on a running Ray, every chunk of `prompts` (`PROMPTS`) that the cache lacks.

    Args:
        on_progress: hears of the prompts done and to do.

    Raises:
        AttuneError: the encoder cannot be loaded, or workers died on every attempt.
    """
    import ray.data

    total = done = 0
    for attempt in range(1, attempts + 1):
        chunks = missing_chunks(prompts, cache)
        if not len(chunks):
            return
        total = total or sum(len(chunk) for chunk in chunks["prompts"].to_pylist())
        device = "cuda" if gpus else "cpu"
        # A block per chunk from the start: a repartition would be a task that waits for a CPU
        # which the actors hold.
        blocks = [chunks.slice(i, 1) for i in range(len(chunks))]
        with warnings.catch_warnings():
            # Ray 2.60 still takes max_restarts here and has no other place for it yet.
            warnings.simplefilter("ignore", ray.util.annotations.RayDeprecationWarning)
            embedded = ray.data.from_arrow(blocks).map_batches(
                EmbedChunks,
                fn_constructor_args=(cache.store.uri, config, text_encoder_id, cpus, device),
                batch_size=1,
                num_cpus=cpus,
                num_gpus=gpus,
                concurrency=min(workers, len(chunks)),
                max_restarts=0,  # Ray Data restarts without end; this loop does, a few times
            )
        try:
            for batch in embedded.iter_batches(batch_size=None):
                done += int(sum(batch["prompts"]))
                on_progress(done, total)
        except ray.exceptions.RayError as error:
            mistake = find_mistake(error)
            if mistake is not None:
                raise mistake from None
            if attempt == attempts:
                reason = " ".join(str(error).split())[:200]
                raise AttuneError(
                    f"embedding failed {attempts} times: {reason}; run again to go on"
                ) from error


def find_mistake(error: BaseException | None) -> AttuneError | None:
    """The `AttuneError` that a worker raised, from under Ray's wrapping."""
    seen = 0
    while error is not None and seen < 10:
        if isinstance(error, AttuneError) and type(error).__module__.startswith("common"):
            return error
        error = getattr(error, "cause", None) or error.__cause__
        seen += 1
    return None
