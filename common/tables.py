"""Rows of catalog tables: CSV, JSON lines, Parquet, and JSON with a list of entries.

Every row keeps its file and line, and `raw_rows` finds the text of a row again by its line.  Every
error message is one line.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from common.audio import AUDIO_EXTENSIONS
from common.errors import AttuneError, one_line
from common.parquet_values import numbered_rows, without_nan
from common.text_files import check_file, is_parquet, open_text, open_text_anyhow

MAX_RAW = 2000
"""`raw_rows` cuts longer rows, in characters."""
_DELIMITERS = (",", ";", "\t", "|")
_FREE_TEXT = re.compile(r"(text|caption|description|sentence)(_\d+)?")
_QUOTED = re.compile(r'"[^"]*("|$)')


@dataclass(slots=True)
class Row:
    """One data row.  `error` says why the row is malformed and is empty for a good row.

    `source` is FILE:LINE, the row's first line; in Parquet and JSON FILE:N, the N-th row or entry.
    """

    source: str
    values: dict[str, Any]
    error: str = ""


def read_csv(
    path: Path,
    required: Sequence[str],
    *,
    header: Sequence[str] | None = None,
    encodings: Sequence[str] = ("utf-8-sig",),
    skip_initial_space: bool = False,
) -> Iterator[Row]:
    """Rows of a CSV file as dictionaries of strings.

    Columns may also be separated by semicolons, tabs or bars if the header row is.  If the last
    column is free text (`caption`, say) and a row's text goes on in the next lines without quotes,
    as in AudioCaps 2.0, the lines are joined; if it is not sure that it does, the row has an error.

    Args:
        required: columns that the file must have.
        header: column names for a file without a header row.  In such a file, lines that begin
            with `# ` are comments (a spreadsheet's `#NAME?` is a row).
        encodings: tried in order on the whole file.

    Raises:
        AttuneError: missing file, another kind of file, wrong encoding, missing columns, or
            quotes that do not match.
    """
    columns = list(header) if header else None
    with open_text(path, encodings) as file:
        delimiter = "," if header else _delimiter(file, required)
        lines: list[str] = []  # those of the row
        reader = csv.reader(
            _tee(file, lines),
            delimiter=delimiter,
            skipinitialspace=skip_initial_space,
            strict=True,
        )
        first_line = 1
        after_blank = False
        held: Row | None = None  # a row that the next line may go on
        try:
            for fields in reader:
                line, first_line = first_line, reader.line_num + 1
                is_quoted = lines[-1].rstrip().endswith('"')
                lines.clear()
                if not fields or (header and fields[0].startswith("# ")):
                    after_blank = True
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
                    error = "has a NUL byte"
                if held and len(fields) < len(columns):
                    goes_on = _goes_on(fields, held.values[columns[0]])
                    if goes_on and after_blank:
                        goes_on = None  # perhaps a line below the table
                    if goes_on:
                        whole = f"{held.values[columns[-1]]} {delimiter.join(fields)}"
                        held.values[columns[-1]] = whole.strip()
                        continue
                    if goes_on is None:
                        held.error = f"its text may go on in line {line}; put the text in quotes"
                if held:
                    yield held
                held = Row(f"{path}:{line}", values, error)
                after_blank = False
                if error or is_quoted or not _FREE_TEXT.fullmatch(columns[-1]):
                    yield held
                    held = None
            if held:
                yield held
        except csv.Error as error:
            raise AttuneError(f"{path}:{first_line}: not valid CSV: {_why(error)}") from error
    if columns is None:
        raise AttuneError(f"{path}: empty; expected a CSV with columns {', '.join(required)}")


def _goes_on(fields: list[str], first: str) -> bool | None:
    """Whether a line with too few fields is the rest of the text of the row before it.

    None if that is not sure: it may also be a row that lacks fields.

    Args:
        fields: of the line.
        first: the first field of the row before.
    """
    if os.path.splitext(fields[0].strip())[1].lower() in AUDIO_EXTENSIONS:
        return False
    if len(fields) == 1:
        return True
    is_like_row = first.strip().isdecimal() and fields[0].strip().isdecimal()
    has_words = any(" " in field for field in fields)
    return None if is_like_row == has_words else has_words


def read_jsonl(path: Path) -> Iterator[Row]:
    """Rows of a JSON-lines file.  A line that is not a JSON object becomes a row with an error.

    Raises:
        AttuneError: missing file, another kind of file, or wrong encoding.
    """
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            source = f"{path}:{number}"
            try:
                value = json.loads(line, parse_constant=_constant)
                # Only an escape can be half a character; the check takes as long as the parsing.
                row = object_row(source, value, has_escapes="\\u" in line)
            except (ValueError, RecursionError) as error:
                row = Row(source, {}, f"not valid JSON: {one_line(error)}")
            yield row


def read_parquet(path: Path) -> Iterator[Row]:
    """Rows of a Parquet file.

    Raises:
        AttuneError: missing file, not Parquet, or a damaged file.
    """
    check_file(path, parquet=True)
    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(1024):
            for values in batch.to_pylist():
                number += 1
                yield Row(f"{path}:{number}", without_nan(values))
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise AttuneError(f"{path}: damaged Parquet: {one_line(error)}") from error


def read_table(path: Path, required: Sequence[str]) -> Iterator[Row]:
    """Rows of a Parquet or CSV (`.csv`, `.tsv`) file; any other file is read as JSON lines.

    Raises:
        AttuneError: as the reader of that format.
    """
    if is_parquet(path):
        return read_parquet(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        return read_csv(path, required)
    return read_jsonl(path)


def intact(rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """The values of rows.

    Raises:
        AttuneError: a row is malformed.
    """
    for row in rows:
        if row.error:
            raise AttuneError(f"{row.source}: {row.error}")
        yield row.values


def read_json_entries(path: Path) -> Iterator[Row]:
    """Entries of a JSON file `{"data": [...]}` or `[...]`.

    An entry that is not an object becomes a row with an error.

    Raises:
        AttuneError: missing file, or not JSON in that form.
    """
    for number, entry in enumerate(_json_list(path), start=1):
        yield object_row(f"{path}:{number}", entry)


def raw_rows(path: Path | str, lines: Collection[int]) -> dict[int, str]:
    """The text of rows in the file, keyed by the number in their `Row.source`.

    At most `MAX_RAW` characters each.  A quoted record over several lines is one text; Parquet
    rows and JSON entries are given as JSON, Parquet rows without their bytes.  Numbers that the
    file does not have are left out.

    Args:
        path: a file, or the `s3://` URI of a Parquet file.

    Raises:
        AttuneError: the file is missing or is not a catalog file.
    """
    wanted = dict.fromkeys(sorted(number for number in lines if number > 0))
    if not wanted:
        return {}
    numbered: Iterable[tuple[int, Any]]
    if isinstance(path, str) or is_parquet(path):
        numbered = numbered_rows(str(path), wanted)
    elif path.suffix.lower() == ".json":
        numbered = enumerate(_json_list(path), start=1)
    else:
        check_file(path)
        with open_text_anyhow(path) as file:
            return dict(_raw_lines(file, wanted))
    texts = {
        number: json.dumps(entry, ensure_ascii=False, default=str)
        for number, entry in numbered
        if number in wanted
    }
    # Half a character cannot be shown or stored.
    return {n: text.encode(errors="replace").decode()[:MAX_RAW] for n, text in texts.items()}


def _raw_lines(file: TextIO, wanted: Iterable[int]) -> Iterator[tuple[int, str]]:
    numbered = enumerate(file, start=1)
    delimiter = ","
    left = list(wanted)[::-1]
    for number, line in numbered:
        if number == 1:
            delimiter = max(_DELIMITERS, key=_QUOTED.sub("", line).count)
        if number != left[-1]:
            continue
        taken = [line]
        if not line.lstrip().startswith("{"):  # in JSON lines a row is a line
            # The csv module decides where a record ends.  After a quote that is never closed it
            # stops at its field limit.
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
    """The delimiter that splits the first line into the required columns; a comma if none does."""
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
    twice = [name for name in columns if name and columns.count(name) > 1]
    if twice:
        raise AttuneError(f"{path}: the header names column {twice[0]} twice")


def _why(error: csv.Error) -> str:
    text = str(error)
    if "end of data" in text:
        return "ends inside a quoted field: the file is cut short, or a quote is not closed"
    if "field limit" in text:
        return f"a field of over {csv.field_size_limit()} characters: perhaps a quote is not closed"
    return text


def object_row(source: str, value: Any, has_escapes: bool = True) -> Row:
    """A row from a JSON value; its error if the value is not an object or has half a character."""
    if not isinstance(value, dict):
        return Row(source, {}, f"expected an object, found {type(value).__name__}")
    try:
        if has_escapes:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return Row(source, {}, "has half a character (a single \\u escape of a pair)")
    return Row(source, value)


def json_row(source: str, data: bytes) -> Row:
    """A row from the JSON text of an object; NaN is None."""
    try:
        return object_row(source, json.loads(data, parse_constant=_constant))
    except (ValueError, RecursionError) as error:
        return Row(source, {}, f"not valid JSON: {one_line(error)}")


def read_json(path: Path) -> Any:
    """The content of a JSON file; NaN is None.

    Raises:
        AttuneError: missing file, another kind of file, or not JSON.
    """
    check_file(path)
    try:
        return json.loads(path.read_bytes(), parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise AttuneError(f"{path}: not valid JSON: {one_line(error)}") from error


def _json_list(path: Path) -> list[Any]:
    data = read_json(path)
    entries = data.get("data") if isinstance(data, dict) else data
    if not isinstance(entries, list):
        raise AttuneError(f'{path}: expected {{"data": [...]}} or a list of entries')
    return entries


def _constant(name: str) -> float | None:
    """NaN, Infinity or -Infinity in JSON.  NaN becomes None: pandas writes it for no value."""
    return None if name == "NaN" else float(name)
