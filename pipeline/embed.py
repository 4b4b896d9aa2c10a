"""Prompt embedding: a Ray Data map over the chunks of the text cache that are not there yet.

Each chunk is embedded by an actor that holds the text encoder, and written where it is made: states
never pass through the driver.  A chunk is finished once its index is there, so a killed run goes on
with the chunks it had not reached.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from common.config import TextEncoderConfig
from common.errors import AttuneError
from common.storage import open_store
from common.text_encoder import load_text_encoder
from pipeline.textcache import TextCache


class EmbedChunks:
    """Holds the encoder; called with batches of chunks by Ray Data."""

    def __init__(
        self, data_dir: str, config: TextEncoderConfig, text_encoder_id: str, threads: int,
        device: str,
    ) -> None:  # fmt: skip
        import torch

        torch.set_num_threads(threads)
        self.encoder = load_text_encoder(config, device)
        if self.encoder.text_encoder_id != text_encoder_id:
            raise AttuneError(
                f"text encoder {config.path} is {self.encoder.text_encoder_id} on a worker, the "
                f"plan was made for {text_encoder_id}; give every node the same encoder"
            )
        self.cache = TextCache(open_store(data_dir), text_encoder_id)

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
    chunks: pa.Table,
    data_dir: str,
    config: TextEncoderConfig,
    text_encoder_id: str,
    *,
    workers: int,
    cpus: int,
    gpus: float,
    on_done: Callable[[int], None],
) -> None:
    """Embed every chunk on a running Ray; `on_done` hears of each batch's number of prompts."""
    import ray.data

    dataset = ray.data.from_arrow(chunks).repartition(len(chunks)).map_batches(
        EmbedChunks,
        fn_constructor_args=(data_dir, config, text_encoder_id, cpus, "cuda" if gpus else "cpu"),
        batch_size=1,
        num_cpus=cpus,
        num_gpus=gpus,
        concurrency=min(workers, len(chunks)),
    )  # fmt: skip
    for batch in dataset.iter_batches(batch_size=None):
        on_done(int(sum(batch["prompts"])))
