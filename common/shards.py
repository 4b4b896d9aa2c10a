"""Reading what the pipeline wrote: the manifest, and one sample by one range read.

A data folder, as a reader sees it:

    manifest.parquet            a row per sample: record, prompts, shard, byte span, frames
    summary.json                what is in it, and which codec and text encoder made it
    shards/000123-<sha12>.tar   ID.codes.npy  int16 [K, T]
                                ID.json       record, prompts with token counts, provenance
                                ID.text.npy   float16 [sum L_i, D]
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import AttuneError, one_line
from common.storage import StorageError, Store, open_store

MEMBERS = ("codes.npy", "json", "text.npy")
"""The members of one sample, in the order of the tar."""
_RUN = "run `python -m pipeline run --config RECIPE`"
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(<[if]2)', 'fortran_order': False, "
    rb"'shape': \((\d+), (\d+)\), \} *\n",
    re.DOTALL,
)


class BadSample(AttuneError):
    """A sample that is gone, cut short or corrupt (and the store can be reached)."""

    every_rank_reports = True


@dataclass(frozen=True)
class Sample:
    """One clip as the model sees it.

    codes: int16 [K, T], K codebooks at the codec's frame rate.
    text: one float16 [L_i, D] array of encoder states per prompt.
    record: the content of `ID.json`.
    """

    sample_id: str
    codes: npt.NDArray[np.int16]
    text: list[npt.NDArray[np.float16]]
    record: dict[str, Any]


class ShardDataset:
    """Random access to a finished set of shards; `ShardDataset.open` makes it."""

    def __init__(self, store: Store, manifest: pa.Table, summary: dict[str, Any]) -> None:
        self.store = store
        self.manifest = manifest
        self.summary = summary
        self._sample_ids = manifest["sample_id"].to_pylist()
        self._shard_keys = manifest["shard_key"].combine_chunks().dictionary_encode()
        self._offsets = manifest["offset"].to_numpy()
        self._lengths = manifest["length"].to_numpy()

    @classmethod
    def open(cls, data_dir: str | Path) -> ShardDataset:
        """Read `manifest.parquet` (rows in the order of shard, then position) and `summary.json`.

        Raises:
            AttuneError: the pipeline has not finished there.
        """
        store = open_store_to_read(data_dir)
        summary = read_summary(store)
        try:
            manifest = parquet_table(store.read("manifest.parquet"))
        except FileNotFoundError:
            raise AttuneError(_not_finished(store, "manifest.parquet")) from None
        except (pa.ArrowException, OSError) as error:
            raise AttuneError(
                f"{store.uri}/manifest.parquet: not readable: {one_line(error)}"
            ) from error
        return cls(store, manifest, summary)

    def __len__(self) -> int:
        return len(self._sample_ids)

    def read(self, i: int) -> Sample:
        """Sample of manifest row `i`, by one range read.

        Raises:
            BadSample: the bytes are not the sample's; names sample and shard.
            StorageError: the store failed.
        """
        sample_id = self._sample_ids[i]
        shard_key = str(self._shard_keys[i].as_py())
        start, length = int(self._offsets[i]), int(self._lengths[i])
        where = f"{self.store.uri}/{shard_key}"
        try:
            data = self.store.read_range(shard_key, start, length)
        except FileNotFoundError:
            raise BadSample(f"{where}: shard is gone; sample {sample_id} was in it") from None
        except StorageError as error:
            entry = self.store.entry(shard_key)
            if entry is None or entry.size >= start + length:
                raise
            raise BadSample(
                f"{where}: shard is cut short at {entry.size} bytes; sample {sample_id} ends at "
                f"{start + length}"
            ) from error
        try:
            return parse_sample(sample_id, data)
        except ValueError as error:
            raise BadSample(
                f"{where}: sample {sample_id} is corrupt: {error}; check all shards with "
                "`python -m pipeline shards verify --config RECIPE`"
            ) from error

    def __iter__(self) -> Iterator[Sample]:
        return (self.read(i) for i in range(len(self)))


def open_store_to_read(data_dir: str | Path) -> Store:
    """`open_store`, but a missing folder is an error.

    Raises:
        AttuneError: there is no such folder.
    """
    if "://" not in str(data_dir) and not Path(data_dir).expanduser().is_dir():
        raise AttuneError(f"{data_dir}: no such data folder; {_RUN} first")
    return open_store(data_dir)


def parquet_table(data: bytes) -> pa.Table:
    """A Parquet file from its bytes, read in this thread only.

    `pyarrow.parquet.read_table` uses worker threads. One of them may release `data` after the table
    was returned, and if Python shuts down at that moment, it aborts the process.

    Raises:
        pa.ArrowException, OSError: the file is damaged.
    """
    return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)


def read_summary(store: Store) -> dict[str, Any]:
    """`summary.json` of a finished run.

    Raises:
        AttuneError: there is none, or it is damaged.
    """
    try:
        summary = json.loads(store.read("summary.json"))
    except FileNotFoundError:
        raise AttuneError(_not_finished(store, "summary.json")) from None
    except ValueError:
        summary = None
    if not isinstance(summary, dict):
        raise AttuneError(f"{store.uri}/summary.json: is damaged; {_RUN} to write it again")
    return summary


def parse_sample(sample_id: str, data: bytes) -> Sample:
    """The sample in `data`, the bytes of its three tar members.

    Raises:
        ValueError: with what is wrong with them.
    """
    members = _plain_members(data) or _members(data)
    expected = [f"{sample_id}.{extension}" for extension in MEMBERS]
    if list(members) != expected:
        raise ValueError(f"expected members {expected}, found {list(members)}")
    try:
        codes = _array(members[expected[0]])
        record = json.loads(members[expected[1]])
        states = _array(members[expected[2]])
    except (ValueError, EOFError) as error:
        raise ValueError(f"unreadable member: {error}") from error
    if codes.dtype != np.int16 or codes.ndim != 2:
        raise ValueError(f"codes: expected int16 [K, T], found {codes.dtype} {codes.shape}")
    if states.dtype != np.float16 or states.ndim != 2:
        raise ValueError(f"text: expected float16 [L, D], found {states.dtype} {states.shape}")
    tokens = record.get("prompt_tokens") if isinstance(record, dict) else None
    if not isinstance(tokens, list) or sum(tokens) != len(states):
        raise ValueError(f"text: {len(states)} states for prompts of {tokens} tokens")
    text = np.split(states, np.cumsum(tokens)[:-1]) if tokens else []
    return Sample(sample_id, codes, text, record)


def _members(data: bytes) -> dict[str, bytes]:
    """The members of any tar that Python can read."""
    members: dict[str, bytes] = {}
    try:
        # `data` ends with the last member's padding, without the end-of-archive blocks.
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for info in tar:
                file = tar.extractfile(info)
                members[info.name] = file.read() if file else b""
    except tarfile.TarError as error:
        raise ValueError(f"not a tar: {error}") from error
    return members


def _plain_members(data: bytes) -> dict[str, bytes] | None:
    """The members of a tar of plain files with short names, as the pipeline writes it.

    Training reads thousands of samples per second, and `tarfile` takes longer than all the rest.

    Returns:
        None if `data` is anything else; `_members` then reads it or reports what is wrong.
    """
    members: dict[str, bytes] = {}
    at = 0
    while at < len(data):
        header = data[at : at + 512]
        sum_field = header[148:156]
        try:
            checksum = int(sum_field.strip(b"\0 "), 8)
            size = int(header[124:136].strip(b"\0 "), 8)
            name = header[:100].rstrip(b"\0").decode("ascii")
        except ValueError:
            return None
        at += 512 + size
        if (
            size < 0
            or checksum != sum(header) - sum(sum_field) + 8 * ord(" ")
            or header[257:263] != b"ustar\0"
            or header[156:157] != b"0"
            or header[345:346] != b"\0"
            or at > len(data)
            or name in members
        ):
            return None
        members[name] = data[at - size : at]
        at += -size % 512
    return members


def _array(data: bytes) -> npt.NDArray[Any]:
    """The array of a `.npy` file; `numpy.load` takes ten times as long for the usual header."""
    usual = _NPY_HEADER.match(data)
    if usual is None or usual.end() != 10 + int.from_bytes(data[8:10], "little"):
        loaded: npt.NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
        return loaded
    shape = int(usual[2]), int(usual[3])
    count, dtype = shape[0] * shape[1], np.dtype(usual[1].decode())
    if len(data) - usual.end() < count * dtype.itemsize:
        raise ValueError(f"array of {shape} is cut short")
    return np.frombuffer(data, dtype, count, usual.end()).reshape(shape).copy()


def _not_finished(store: Store, name: str) -> str:
    return f"{store.uri}: no {name} in it; {_RUN} to the end first"
