"""Tables of catalogs, row by row: CSV, JSON lines, Parquet, and JSON with a list of entries.

Every row knows its place, every error is one line, and `raw_rows` finds rows again by their place.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import AttuneError
from pipeline.catalogs.files import check_file, is_parquet, open_text, open_text_anyhow

__all__ = [
    "Row", "check_file", "first_fields", "one_line", "raw_rows", "read_csv", "read_json_entries",
    "read_jsonl", "read_parquet", "read_table",
]  # fmt: skip

MAX_RAW = 2000
"""Characters of a row that `raw_rows` gives."""
_DELIMITERS = (",", ";", "\t", "|")
_QUOTED = re.compile(r'"[^"]*("|$)')


@dataclass(slots=True)
class Row:
    """One data row; `error` says why it is malformed.

    `source` is FILE:LINE of its first line, in Parquet and JSON FILE:N of the N-th row or entry.
    """

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

    Semicolons, tabs and bars separate columns too, where the header row says so.

    Args:
        required: columns without which the file is not what it claims to be.
        header: column names of a file without a header row; its lines that begin with `# ` are
            comments then (a spreadsheet's `#NAME?` is a row).
        encodings: tried in order on the whole file.

    Raises:
        AttuneError: missing file, another kind of file, wrong encoding, missing columns, or
            quotes that do not match.
    """
    path = Path(path)
    columns = list(header) if header else None
    with open_text(path, encodings) as file:
        delimiter = "," if header else _delimiter(file, required)
        reader = csv.reader(
            file, delimiter=delimiter, skipinitialspace=skip_initial_space, strict=True
        )
        first_line = 1
        try:
            for fields in reader:
                line, first_line = first_line, reader.line_num + 1
                if not fields or (header and fields[0].startswith("# ")):
                    continue
                if columns is None:
                    columns = [name.strip() for name in fields]
                    _check_columns(path, columns, required)
                    continue
                values = dict(zip(columns, fields, strict=False))
                error = ""
                if len(fields) != len(columns):
                    error = f"expected {len(columns)} fields, found {len(fields)}"
                elif any("\0" in field for field in fields):
                    error = "holds a NUL byte"
                yield Row(f"{path}:{line}", values, error)
        except csv.Error as error:
            raise AttuneError(f"{path}:{first_line}: not valid CSV: {_why(error)}") from error
    if columns is None:
        raise AttuneError(f"{path}: empty; expected a CSV with columns {', '.join(required)}")


def read_jsonl(path: str | Path) -> Iterator[Row]:
    """Rows of a JSON-lines file; a line that is no JSON object comes with its error.

    Raises:
        AttuneError: missing file, another kind of file, or wrong encoding.
    """
    path = Path(path)
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _json_row(f"{path}:{number}", line)


def read_parquet(path: str | Path) -> Iterator[Row]:
    """Rows of a Parquet file.

    Raises:
        AttuneError: missing file, or not (whole) Parquet.
    """
    path = Path(path)
    check_file(path, parquet=True)
    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(1024):
            for values in batch.to_pylist():
                number += 1
                yield Row(f"{path}:{number}", _without_nan(values))
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise AttuneError(f"{path}: broken Parquet: {one_line(error)}") from error


def read_table(path: str | Path, required: Sequence[str]) -> Iterator[Row]:
    """Rows of a Parquet, CSV (`.csv`, `.tsv`) or else JSON-lines file.

    Raises:
        AttuneError: as the reader of that kind.
    """
    path = Path(path)
    if is_parquet(path):
        return read_parquet(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        return read_csv(path, required)
    return read_jsonl(path)


def read_json_entries(path: str | Path) -> Iterator[Row]:
    """Entries of a JSON file `{"data": [...]}` or `[...]`; one that is no object has its error.

    Raises:
        AttuneError: missing file, or not JSON in that form.
    """
    path = Path(path)
    for number, entry in enumerate(_json_list(path), start=1):
        source = f"{path}:{number}"
        if not isinstance(entry, dict):
            yield Row(source, {}, f"expected an object, found {type(entry).__name__}")
        elif not _is_encodable(entry):
            yield Row(source, {}, "holds half a character (a lone \\u escape)")
        else:
            yield Row(source, entry)


def first_fields(path: Path) -> list[str]:
    """The fields of the first row that is no comment, to tell forms of a file without header.

    Raises:
        AttuneError: as `read_csv`.
    """
    with open_text(path) as file:
        try:
            for fields in csv.reader(file, strict=True):
                if fields and not fields[0].startswith("# "):
                    return fields
        except csv.Error as error:
            raise AttuneError(f"{path}: not valid CSV: {_why(error)}") from error
    raise AttuneError(f"{path}: no rows")


def raw_rows(path: Path, lines: Collection[int]) -> dict[int, str]:
    """The text of rows as it stands in the file, by the number in their `Row.source`.

    At most `MAX_RAW` characters each; a quoted record over several lines whole; Parquet rows and
    JSON entries as JSON.  Numbers that the file does not have are left out.  One pass.

    Raises:
        AttuneError: the file is missing or of no kind that catalogs have.
    """
    wanted = sorted({number for number in lines if number > 0})
    if not wanted:
        return {}
    if is_parquet(path) or path.suffix.lower() == ".json":
        entries: Iterable[Any] = (
            (row.values for row in read_parquet(path)) if is_parquet(path) else _json_list(path)
        )
        chosen = set(wanted)
        return {
            number: json.dumps(_escaped(entry), ensure_ascii=False, default=str)[:MAX_RAW]
            for number, entry in enumerate(entries, start=1)
            if number in chosen
        }
    check_file(path)
    with open_text_anyhow(path) as file:
        return dict(_raw_lines(file, wanted))


def _raw_lines(file: TextIO, wanted: Sequence[int]) -> Iterator[tuple[int, str]]:
    numbered = enumerate(file, start=1)
    delimiter = ","
    left = list(reversed(wanted))
    for number, line in numbered:
        if number == 1:
            delimiter = max(_DELIMITERS, key=_QUOTED.sub("", line).count)
        if number != left[-1]:
            continue
        taken = [line]
        if not line.lstrip().startswith("{"):  # in JSON lines a row is a line
            # The csv module decides where a record ends; of an open quote it soon has enough.
            record = csv.reader(
                _tee(chain([line], (text for _, text in numbered)), taken), delimiter=delimiter
            )
            with suppress(csv.Error):
                next(record, None)
            taken = taken[1:]
        while left and left[-1] < number + len(taken):
            start = left.pop()
            yield start, "".join(taken[start - number :]).rstrip("\r\n")[:MAX_RAW]
        if not left:
            return


def _tee(lines: Iterable[str], taken: list[str]) -> Iterator[str]:
    for line in lines:
        taken.append(line)
        yield line


def _delimiter(file: TextIO, required: Sequence[str]) -> str:
    """The one that gives the first line the required columns; a comma if none does."""
    first = next((line for line in file if line.strip()), "")
    file.seek(0)
    for delimiter in _DELIMITERS:
        names = [name.strip().strip('"') for name in first.split(delimiter)]
        if all(name in names for name in required):
            return delimiter
    return ","


def _check_columns(path: Path, columns: list[str], required: Sequence[str]) -> None:
    missing = [name for name in required if name not in columns]
    if missing:
        raise AttuneError(
            f"{path}: no column {', '.join(missing)}; the first line must name them, found "
            f"{one_line(', '.join(columns))}"
        )
    twice = [name for name in required if columns.count(name) > 1]
    if twice:
        raise AttuneError(f"{path}: column {twice[0]} is there twice")


def _why(error: csv.Error) -> str:
    text = str(error)
    if "end of data" in text:
        return "ends inside a quoted field: the file is cut short, or a quote is not closed"
    if "field limit" in text:
        return f"a field of over {csv.field_size_limit()} characters: a quote is not closed?"
    return text


def _json_row(source: str, line: str) -> Row:
    try:
        values = json.loads(line, parse_constant=_constant)
        # An escape can stand for half a character, which no file can hold.
        if "\\u" in line and not _is_encodable(values):
            return Row(source, {}, "holds half a character (a lone \\u escape)")
    except (ValueError, RecursionError) as error:
        return Row(source, {}, f"not valid JSON: {one_line(error)}")
    if isinstance(values, dict):
        return Row(source, values)
    return Row(source, {}, f"expected an object, found {type(values).__name__}")


def _json_list(path: Path) -> list[Any]:
    check_file(path)
    try:
        data = json.loads(path.read_bytes(), parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise AttuneError(f"{path}: not valid JSON: {one_line(error)}") from error
    entries = data.get("data") if isinstance(data, dict) else data
    if not isinstance(entries, list):
        raise AttuneError(f'{path}: expected {{"data": [...]}} or a list of entries')
    return entries


def _constant(name: str) -> float | None:
    """NaN, Infinity or -Infinity of JSON; None for the first, by which pandas writes nothing."""
    return None if name == "NaN" else float(name)


def _without_nan(values: dict[str, Any]) -> dict[str, Any]:
    """The same of a Parquet row."""
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in values.items()
    }


def _is_encodable(values: Any) -> bool:
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _escaped(value: Any) -> Any:
    """With half characters replaced, so that the row can be shown and stored."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {_escaped(key): _escaped(item) for key, item in value.items()}
    return [_escaped(item) for item in value] if isinstance(value, list) else value


def one_line(value: object) -> str:
    """What a file says, fit for a message."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())[:200]
