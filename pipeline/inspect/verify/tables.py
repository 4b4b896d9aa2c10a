"""Tables with a row per sample, without holding their rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.errors import AttuneError
from common.storage import Store

_ROWS_AT_ONCE = 8192


class Ids:
    """A long list of sample ids as Arrow holds it."""

    def __init__(self) -> None:
        self._parts: list[pa.Array] = []
        self._length = 0

    def add(self, ids: list[str]) -> None:
        self._parts.append(pa.array(ids, pa.string()))
        self._length += len(ids)

    def __len__(self) -> int:
        return self._length

    def array(self) -> pa.ChunkedArray:
        return pa.chunked_array(self._parts, pa.string())


class Rows:
    """A Parquet file with a row per sample: the ids of all, the rows a row group at a time.

    Raises:
        FileNotFoundError: it is missing.
        pyarrow.ArrowException, OSError: it cannot be read to its end.
    """

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key
        parts: list[pa.Array] = []
        with store.open(key) as source:
            file = pq.ParquetFile(source)
            self.schema, self._metadata = file.schema_arrow, file.metadata
            # All columns, so that damage anywhere shows now.
            for batch in file.iter_batches(_ROWS_AT_ONCE):
                if "sample_id" in self.schema.names:
                    parts.append(batch["sample_id"].cast(pa.string()).fill_null(""))
        self.ids = pa.chunked_array(parts, pa.string())
        sizes = [self._metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self._held: tuple[int, pa.Table] | None = None
        self._numbers: dict[str, int] | None = None

    def find(self, sample_ids: list[str], place: int) -> dict[str, dict[str, Any]]:
        """The rows of these samples; those that have none are left out.

        Args:
            place: number of the row where they begin, if the file is in order.

        Raises:
            AttuneError: the file changed since it was opened.
        """
        if self.ids.slice(place, len(sample_ids)).to_pylist() == sample_ids:
            numbers = np.arange(place, place + len(sample_ids))
        else:
            if self._numbers is None:
                self._numbers = {name: i for i, name in enumerate(self.ids.to_pylist())}
            known = [self._numbers[name] for name in sample_ids if name in self._numbers]
            numbers = np.array(known, np.int64)
        groups = np.searchsorted(self._ends, numbers, side="right")
        rows: dict[str, dict[str, Any]] = {}
        for group in np.unique(groups).tolist():
            table = self._group(group)
            first = self._ends[group] - len(table)
            chosen = table.take(pa.array(numbers[groups == group] - first))
            rows |= {str(row["sample_id"]): row for row in chosen.to_pylist()}
        return rows

    def _group(self, number: int) -> pa.Table:
        if self._held is None or self._held[0] != number:
            self._held = None
            try:
                with self._store.open(self._key) as source:
                    file = pq.ParquetFile(source, metadata=self._metadata)
                    self._held = number, file.read_row_group(number)
            except (pa.ArrowException, OSError) as error:
                where = f"{self._store.uri}/{self._key}"
                raise AttuneError(f"{where}: changed while it was read: {error}") from error
        return self._held[1]


def without(ids: pa.Array | pa.ChunkedArray, others: pa.Array | pa.ChunkedArray) -> list[str]:
    """The ids that are not among the others, sorted."""
    return sorted(ids.filter(pc.invert(pc.is_in(ids, value_set=others))).to_pylist())


def repeated(ids: pa.ChunkedArray) -> list[str]:
    """The ids that are there more than once."""
    if len(ids.unique()) == len(ids):
        return []
    counts = ids.value_counts()
    return list(counts.field("values").filter(pc.greater(counts.field("counts"), 1)).to_pylist())
