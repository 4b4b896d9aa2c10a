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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.shards import parquet_table
from common.storage import Store

PROMPTS = pa.schema([("prompt", pa.string()), ("chunk", pa.string())])
_INDEX = pa.schema(
    [("prompt", pa.string()), ("row", pa.int64()), ("tokens", pa.int32()), ("dim", pa.int32())]
)


_INDICES_KEPT = 256


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
        # What a shard's neighbours ask for again; some tens of kilobytes each.
        self._index = lru_cache(maxsize=_INDICES_KEPT)(self._read_index)

    def chunks(self) -> set[str]:
        """Names of the finished chunks; an index without its states is none."""
        names = {key.rsplit("/", 1)[-1] for key, _ in self.store.list(self.folder)}
        chunks = {name.removesuffix(".parquet") for name in names if name.endswith(".parquet")}
        return {chunk for chunk in chunks if f"{chunk}.f16" in names}

    def assign_chunks(self, plan: pa.Table, chunk_size: int) -> tuple[pa.Table, pa.Array]:
        """The chunk that each unique prompt of a plan is in, or will be in.

        Prompts that are in the cache already keep their chunk; the others are cut into new ones in
        the order in which the plan comes to them, so that a shard finds most of its own in few.

        Returns:
            `PROMPTS`, new chunks first, each in one piece; and per row of the plan the chunks of
            its prompts, list<string>.
        """
        lists = plan["prompts"].combine_chunks()
        flat = lists.flatten()
        prompts = flat.unique()
        known = self._known()
        place = pc.index_in(prompts, value_set=known["prompt"].combine_chunks())
        fresh = prompts.filter(pc.is_null(place))
        names: list[str] = []
        for start in range(0, len(fresh), chunk_size):
            chunk = fresh.slice(start, chunk_size).to_pylist()
            name = hashlib.blake2b(json.dumps(chunk).encode(), digest_size=12).hexdigest()
            names += [name] * len(chunk)
        kept = known.take(place.drop_null()).sort_by([("chunk", "ascending")])
        table = pa.concat_tables(
            [pa.table({"prompt": fresh, "chunk": pa.array(names, pa.string())}, PROMPTS), kept]
        ).combine_chunks()
        where = pc.index_in(flat, value_set=table["prompt"].combine_chunks())
        chunks = table["chunk"].combine_chunks().take(where)
        return table, pa.ListArray.from_arrays(_offsets(lists), chunks)

    def _known(self) -> pa.Table:
        """`PROMPTS` of the finished chunks, each prompt once."""
        tables = [PROMPTS.empty_table()]
        for name in sorted(self.chunks()):
            prompts = self._index(name)["prompt"]
            names = pa.repeat(pa.scalar(name), len(prompts))
            tables.append(pa.table([prompts, names], schema=PROMPTS))
        table = pa.concat_tables(tables)
        _, first = np.unique(
            pc.dictionary_encode(table["prompt"].combine_chunks()).indices, return_index=True
        )
        return table.take(pa.array(np.sort(first)))

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

    def find(self, prompts: Mapping[str, str]) -> dict[str, StateSpan]:
        """Where prompts lie, from the finished chunk that each is in.

        Raises:
            FileNotFoundError: a chunk is not there.
            KeyError: a prompt is not in its chunk.
        """
        by_chunk: dict[str, list[str]] = {}
        for prompt, chunk in prompts.items():
            by_chunk.setdefault(chunk, []).append(prompt)
        spans: dict[str, StateSpan] = {}
        for chunk, wanted in by_chunk.items():
            index = self._index(chunk)
            places = pc.index_in(pa.array(wanted, pa.string()), value_set=index["prompt"])
            if places.null_count:
                lost = wanted[places.is_null().index(True).as_py()]
                raise KeyError(f"prompt {lost!r} is not in text chunk {chunk}")
            found = index.take(places)
            columns = (found[column].to_pylist() for column in ("row", "tokens", "dim"))
            for prompt, row, tokens, dim in zip(wanted, *columns, strict=True):
                spans[prompt] = StateSpan(chunk, row, tokens, dim)
        return spans

    def _read_index(self, chunk: str) -> pa.Table:
        data = self.store.read(f"{self.folder}/{chunk}.parquet")
        return parquet_table(data).combine_chunks()

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


def _offsets(lists: pa.ListArray) -> pa.Array:
    """Of lists that begin at the first of their values, whatever array they are a part of."""
    offsets = lists.offsets
    return pc.subtract(offsets, offsets[0])
