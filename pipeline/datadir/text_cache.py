"""The text cache: the encoder states of each unique prompt, kept by content.

    text/<text_encoder_id>/<chunk>.f16       states of the chunk's prompts, float16 [sum L_i, D]
    text/<text_encoder_id>/<chunk>.parquet   prompt, first row, tokens, D; written last

The key of a prompt is its text.  The folder's name identifies the encoder (weights, tokenizer and
maximal length).  Prompts are embedded and stored in chunks, which the plan fixes.  This keeps the
number of objects small, and only the plan decides the states to the last bit: an encoder's
rounding depends on which prompts share its batches.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
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


class TextCache:
    """The states of one text encoder in one store."""

    def __init__(self, store: Store, text_encoder_id: str) -> None:
        self.store = store
        self.folder = f"text/{text_encoder_id}"
        # Neighbouring shards ask for the same indices; each takes some tens of kilobytes.
        self._index = lru_cache(maxsize=256)(self._read_index)

    def chunks(self) -> set[str]:
        """Names of the finished chunks: those with an index and states."""
        names = {key.rsplit("/", 1)[-1] for key, _ in self.store.list(self.folder)}
        chunks = {name.removesuffix(".parquet") for name in names if name.endswith(".parquet")}
        return {chunk for chunk in chunks if f"{chunk}.f16" in names}

    def assign_chunks(self, plan: pa.Table, chunk_size: int) -> tuple[pa.Table, pa.Array]:
        """Assign each unique prompt of a plan to a chunk.

        Prompts that are in the cache already keep their chunk.  The others fill new chunks in the
        order of the plan, so that the prompts of a shard are in few chunks.

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
        # In a slice of a longer array the first offset is not 0.
        offsets = pc.subtract(lists.offsets, lists.offsets[0])
        return table, pa.ListArray.from_arrays(offsets, chunks)

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
        columns = {
            "prompt": list(prompts),
            "row": np.cumsum([0, *tokens])[:-1],
            "tokens": tokens,
            "dim": [state.shape[1] for state in states],
        }
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns, schema=_INDEX), buffer, compression="zstd")
        data = np.concatenate(states).astype("<f2", copy=False).tobytes()
        self.store.write(f"{self.folder}/{name}.f16", data)
        self.store.write(f"{self.folder}/{name}.parquet", buffer.getvalue())

    def _read_index(self, chunk: str) -> pa.Table:
        data = self.store.read(f"{self.folder}/{chunk}.parquet")
        return parquet_table(data).combine_chunks()

    def read(self, chunks: Mapping[str, str]) -> dict[str, npt.NDArray[np.float16]]:
        """Read the states of prompts, float16 [L_i, D]; one request per chunk.

        Args:
            chunks: {prompt: the finished chunk that it is in}.

        Raises:
            FileNotFoundError: a chunk is missing.
            KeyError: a prompt is not in its chunk.
        """
        by_chunk: defaultdict[str, list[str]] = defaultdict(list)
        for prompt, chunk in chunks.items():
            by_chunk[chunk].append(prompt)
        states: dict[str, npt.NDArray[np.float16]] = {}
        for chunk, wanted in by_chunk.items():
            index = self._index(chunk)
            places = pc.index_in(pa.array(wanted, pa.string()), value_set=index["prompt"])
            if places.null_count:
                lost = wanted[places.is_null().index(True).as_py()]
                raise KeyError(f"prompt {lost!r} is not in text chunk {chunk}")
            rows = index.take(places).to_pylist()
            spans = [(2 * r["row"] * r["dim"], 2 * r["tokens"] * r["dim"]) for r in rows]
            parts = self.store.read_ranges(f"{self.folder}/{chunk}.f16", spans)
            for row, part in zip(rows, parts, strict=True):
                states[row["prompt"]] = np.frombuffer(part, "<f2").reshape(-1, row["dim"])
        return states
