"""Catalog readers in tests: make one, give it audio, sort its outcomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import TypeAdapter

from common.schema import Record
from pipeline.catalogs import AnyCatalog
from pipeline.catalogs.base import Merged, Outcome, Refusal
from pipeline.catalogs.columnar import ColumnarCatalog


def catalog(**values: object) -> Any:
    """A `Catalog`, or for AudioSet a `ColumnarCatalog`."""
    return TypeAdapter(AnyCatalog).validate_python(values)


def outcomes_of(made: ColumnarCatalog) -> list[Outcome]:
    """Rows of a columnar reader in the form of the other readers' outcomes."""
    table = made.locate(pa.concat_tables([made.read_piece(piece) for piece in made.pieces()]))
    outcomes: list[Outcome] = []
    for row in table.to_pylist():
        values = {name: row[name] for name in ("dataset", "native_id", "group_id", "split")}
        values |= {"source": f"{row['file']}:{row['line']}", "clip": row["clip"] or ""}
        if row["reason"] is not None:
            why = {name: row[name] for name in ("stage", "reason", "detail")}
            outcomes.append(Refusal(**values, **why))
        else:
            more = {name: row[name] for name in ("audio_uri", "tags", "captions", "stated_s")}
            outcomes.append(Record(**values, **more, sample_id=row["sample_id"].hex()))
    return outcomes


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def write(path: Path, *lines: str, end: str = "\n") -> Path:
    path.write_bytes("".join(line + end for line in lines).encode())
    return path


def read(**values: object) -> list[Outcome]:
    return list(catalog(**values).read())


def records(outcomes: list[Outcome]) -> list[Record]:
    return [outcome for outcome in outcomes if isinstance(outcome, Record)]


def refusals(outcomes: list[Outcome]) -> list[tuple[str, str]]:
    """Line and reason of each, in order."""
    return [(o.source.rsplit(":", 1)[-1], o.reason) for o in outcomes if isinstance(o, Refusal)]


def held_out(outcomes: list[Outcome]) -> set[str]:
    """Groups that refused rows of a held-out split keep out of training."""
    return {
        o.group_id for o in outcomes if isinstance(o, Refusal) and o.split in ("valid", "test")
    } - {""}


def merged(outcomes: list[Outcome]) -> list[str]:
    return [o.source.rsplit(":", 1)[-1] for o in outcomes if isinstance(o, Merged)]


def names(outcomes: list[Outcome]) -> list[str]:
    """The accepted audio files, without their folders."""
    return [Path(record.audio_uri).name for record in records(outcomes)]
