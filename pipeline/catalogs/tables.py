"""CSV and JSONL files, row by row, with line numbers and one-line errors."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import AttuneError


@dataclass(slots=True)
class Row:
    """One data row: `source` is FILE:LINE of its first line; `error` says why it is malformed."""

    source: str
    values: dict[str, Any]
    error: str = ""


def read_csv(
    path: str | Path,
    required: Sequence[str],
    *,
    header: Sequence[str] | None = None,
    encodings: Sequence[str] = ("utf-8-sig",),
    skip_initial_space: bool = False,
) -> Iterator[Row]:
    """Rows of a CSV file as dictionaries of strings.

    Args:
        required: columns without which the file is not what it claims to be.
        header: column names of a file without a header row; its lines that begin with `# ` are
            comments then (a spreadsheet's `#NAME?` is a row).
        encodings: tried in order on the whole file.

    Raises:
        AttuneError: missing file, wrong encoding, or missing columns.
    """
    path = Path(path)
    check_file(path)
    encoding = _first_that_decodes(path, encodings)
    with path.open(encoding=encoding, newline="") as file:
        reader = csv.reader(file, skipinitialspace=skip_initial_space, strict=True)
        columns = list(header) if header else None
        first_line = 1
        try:
            for fields in reader:
                line, first_line = first_line, reader.line_num + 1
                if not fields or (header and fields[0].startswith("# ")):
                    continue
                if columns is None:
                    columns = fields
                    _check_columns(path, columns, required)
                    continue
                values = dict(zip(columns, fields, strict=False))
                error = ""
                if len(fields) != len(columns):
                    error = f"expected {len(columns)} fields, found {len(fields)}"
                yield Row(f"{path}:{line}", values, error)
        except csv.Error as error:
            raise AttuneError(f"{path}:{first_line}: not valid CSV: {error}") from error
    if columns is None:
        raise AttuneError(f"{path}: empty; expected a CSV with columns {', '.join(required)}")


def read_jsonl(path: str | Path) -> Iterator[Row]:
    """Rows of a JSON-lines file; a line that is no JSON object comes with its error.

    Raises:
        AttuneError: missing file or wrong encoding.
    """
    path = Path(path)
    check_file(path)
    with path.open(encoding=_first_that_decodes(path, ("utf-8-sig",))) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            source = f"{path}:{number}"
            try:
                values = json.loads(line)
                if (
                    "\\u" in line
                ):  # an escape can stand for half a character, which no file can hold
                    json.dumps(values, ensure_ascii=False).encode()
            except (ValueError, RecursionError) as error:
                yield Row(source, {}, f"not valid JSON: {error}")
                continue
            if isinstance(values, dict):
                yield Row(source, values)
            else:
                yield Row(source, {}, f"expected an object, found {type(values).__name__}")


def check_file(path: Path) -> None:
    if os.path.isdir(path):
        raise AttuneError(f"{path}: expected a file, found a folder")
    try:
        with path.open("rb") as file:
            magic = file.read(2)
    except FileNotFoundError:
        raise AttuneError(f"{path}: no such file") from None
    except OSError as error:
        raise AttuneError(f"{path}: cannot be read: {error.strerror}") from error
    if magic == b"\x1f\x8b":
        raise AttuneError(f"{path}: gzip-compressed; unpack it first")


def _first_that_decodes(path: Path, encodings: Sequence[str]) -> str:
    for encoding in encodings:
        try:
            with path.open(encoding=encoding) as file:
                while file.read(1 << 20):
                    pass
        except UnicodeDecodeError:
            continue
        return encoding
    raise AttuneError(f"{path}: not {' or '.join(encodings)} text; convert it first")


def _check_columns(path: Path, columns: list[str], required: Sequence[str]) -> None:
    missing = [name for name in required if name not in columns]
    if missing:
        raise AttuneError(
            f"{path}: no column {', '.join(missing)}; found {', '.join(columns)[:200]}"
        )
