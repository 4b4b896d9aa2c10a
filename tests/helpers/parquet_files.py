"""Parquet files with audio in Hugging Face's form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
Sound = tuple[bytes | None, str | None]
"""The bytes and the path in a row."""


def write_parquet(
    path: Path,
    sounds: Sequence[Sound],
    *,
    features: Mapping[str, Any] | None = None,
    rows_per_group: int = 100,
    **columns: Sequence[Any],
) -> Path:
    """A file with the column `audio` and others; `features`: Hugging Face's description."""
    audio = pa.array([{"bytes": data, "path": name} for data, name in sounds], AUDIO)
    table = pa.table({"audio": audio, **{name: pa.array(v) for name, v in columns.items()}})
    if features is not None:
        described = json.dumps({"info": {"features": dict(features)}})
        table = table.replace_schema_metadata({"huggingface": described})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows_per_group)
    return path


class CountedReads:
    """Counts the bytes that are read from Parquet files on a disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes = 0
        counted = self

        class Counted(FileIO):
            def read(self, size: int | None = -1) -> bytes:  # type: ignore[override]
                data = super().read(-1 if size is None else size)
                counted.bytes += len(data)
                return data

            def readinto(self, buffer: Any) -> int:
                size = super().readinto(buffer)
                counted.bytes += size
                return size

        monkeypatch.setattr("common.parquet_values._opened", Counted)
