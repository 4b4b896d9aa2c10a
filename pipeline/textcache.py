"""The text cache: each unique prompt's encoder states, kept by content.

    text/<text_encoder_id>/<chunk>.f16       states of the chunk's prompts, float16 [sum L_i, D]
    text/<text_encoder_id>/<chunk>.parquet   prompt, first row, tokens, D; written last

A prompt is its own key: the folder names the encoder (its weights, tokenizer and maximal length).
The unit that is embedded and stored is a chunk of prompts, fixed by the plan.  That keeps the
number of objects small and the states, to the last bit, a function of the plan: an encoder's
rounding depends on which prompts share its batches.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from common.storage import Store

PROMPTS = pa.schema([("prompt", pa.string()), ("chunk", pa.string())])
_INDEX = pa.schema(
    [("prompt", pa.string()), ("row", pa.int64()), ("tokens", pa.int32()), ("dim", pa.int32())]
)


@dataclass(frozen=True, slots=True)
class StateSpan:
    """Where a prompt's states lie: `tokens` rows of `dim` from row `row` of a chunk."""

    chunk: str
    row: int
    tokens: int
    dim: int


class TextCache:
    """The states of one text encoder in one store."""

    def __init__(self, store: Store, text_encoder_id: str) -> None:
        self.store = store
        self.folder = f"text/{text_encoder_id}"

    def chunks(self) -> set[str]:
        """Names of the finished chunks."""
        names = (key.rsplit("/", 1)[-1] for key, _ in self.store.list(self.folder))
        return {name.removesuffix(".parquet") for name in names if name.endswith(".parquet")}

    def assign_chunks(self, plan: pa.Table, chunk_size: int) -> pa.Table:
        """Every unique prompt of a plan (`PROMPTS`), with the chunk it is in or will be in.

        Prompts that are in the cache already keep their chunk; the others are cut into new ones.
        """
        flat = plan["prompts"].combine_chunks().flatten()
        prompts = sorted(flat.unique().to_pylist())
        known = {prompt: span.chunk for prompt, span in self.spans(self.chunks()).items()}
        fresh = [prompt for prompt in prompts if prompt not in known]
        for start in range(0, len(fresh), chunk_size):
            chunk = fresh[start : start + chunk_size]
            name = hashlib.blake2b(json.dumps(chunk).encode(), digest_size=12).hexdigest()
            known.update(dict.fromkeys(chunk, name))
        chunks = [known[prompt] for prompt in prompts]
        return pa.table({"prompt": prompts, "chunk": chunks}, schema=PROMPTS)

    def write_chunk(
        self, name: str, prompts: Sequence[str], states: Sequence[npt.NDArray[np.float16]]
    ) -> None:
        """Store the states (float16 [L_i, D] each) of a chunk's prompts."""
        tokens = [len(state) for state in states]
        rows = np.cumsum([0, *tokens])[:-1]
        index = pa.table(
            {
                "prompt": list(prompts),
                "row": rows,
                "tokens": tokens,
                "dim": [state.shape[1] for state in states],
            },
            schema=_INDEX,
        )
        buffer = io.BytesIO()
        pq.write_table(index, buffer, compression="zstd")
        data = np.concatenate(states).astype("<f2", copy=False).tobytes()
        self.store.write(f"{self.folder}/{name}.f16", data)
        self.store.write(f"{self.folder}/{name}.parquet", buffer.getvalue())

    def spans(self, chunks: Iterable[str]) -> dict[str, StateSpan]:
        """Where each prompt of these finished chunks lies."""
        spans: dict[str, StateSpan] = {}
        for name in sorted(chunks):
            data = self.store.read(f"{self.folder}/{name}.parquet")
            index = pq.read_table(pa.BufferReader(data))
            columns = (index[column].to_pylist() for column in ("prompt", "row", "tokens", "dim"))
            for prompt, row, tokens, dim in zip(*columns, strict=True):
                spans.setdefault(prompt, StateSpan(name, row, tokens, dim))
        return spans

    def read(self, spans: Mapping[str, StateSpan]) -> dict[str, npt.NDArray[np.float16]]:
        """The states of each prompt, float16 [L_i, D]; one request per chunk."""
        by_chunk: dict[str, list[str]] = {}
        for prompt, span in spans.items():
            by_chunk.setdefault(span.chunk, []).append(prompt)
        states: dict[str, npt.NDArray[np.float16]] = {}
        for chunk, prompts in by_chunk.items():
            wanted = [
                (2 * spans[p].row * spans[p].dim, 2 * spans[p].tokens * spans[p].dim)
                for p in prompts
            ]
            parts = self.store.read_ranges(f"{self.folder}/{chunk}.f16", wanted)
            for prompt, part in zip(prompts, parts, strict=True):
                states[prompt] = np.frombuffer(part, "<f2").reshape(-1, spans[prompt].dim)
        return states
