"""Convert values in catalogs to values in records; None if there is no value.

`nan`, `None`, `null` and `<NA>` (in any case) are no value: programs write them for empty cells.
"""

from __future__ import annotations

import ast
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from common.audio import AUDIO_EXTENSIONS
from common.errors import one_line
from common.schema import SPLITS

CAPTION_COLUMN = re.compile(r"(text|caption|description)s?(_\d+)?")
"""Names of columns that hold captions, as people call them."""
START_COLUMNS = ("start", "start_time", "start_s")
END_COLUMNS = ("end", "end_time", "end_s")
SPAN_COLUMNS = (*START_COLUMNS, *END_COLUMNS, "offset", "duration")

_NO_TAGS: Mapping[str, str] = {}
_MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
_SPREADSHEET = {
    "a failed formula, made of an id that begins with - or =": r"#[A-Z/0]+[?!A]",
    "a rounded number": r"[+-]?\d+([.,]\d+)?E[+-]?\d+",
    "a date": rf"\d{{1,4}}([/.-])\d{{1,2}}[/.-]\d{{1,4}}|(?i:\d{{1,2}}-({_MONTHS})(-\d{{2,4}})?)"
    rf"|(?i:({_MONTHS})-\d{{2,4}})",
    "a whole row in one field, or changed quotes": r"(?s).*[\s,;\"].*",
}
YOUTUBE_ID = 11
"""Characters of an id of YouTube."""
NO_ID = rf"^({'|'.join(_SPREADSHEET.values())}|.{{{YOUTUBE_ID + 1},}}|)$"
"""Pattern of texts that `no_youtube_id` refuses, for Arrow."""
_MAX_LIST = 20_000  # characters; a longer text is not parsed as a list literal
_NO_VALUE = {"", "nan", "none", "null", "<na>"}
_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?")
_CLOCK = re.compile(r"(?:(\d{1,4}):(?=\d\d?:))?(\d{1,4}):(\d\d?(?:\.\d+)?)")
_SPLIT_WORDS = {
    "train": "train", "training": "train",
    "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip


@dataclass
class Texts:
    """The captions and tags of a row."""

    captions: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    problem: str = ""
    """Why the first value that is no text is none, if the row has neither captions nor tags."""

    def __bool__(self) -> bool:
        return bool(self.captions or self.tags or self.problem)


def number(value: object) -> float | None:
    """A finite number of zero or more, from a number or its text."""
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return found if 0 <= found < math.inf else None


def length(value: object) -> float | None:
    """A time above zero, from a number or its text."""
    return number(value) or None


def whole_seconds(value: object) -> int | None:
    """A time of zero or more, rounded down to the second."""
    seconds = number(value)
    return None if seconds is None else int(seconds)


def seconds(value: object) -> float | None:
    """A time of zero or more in seconds, from a number, its text, or `h:m:s` or `m:s`."""
    clock = _CLOCK.fullmatch(value.strip()) if isinstance(value, str) else None
    if clock is None:
        return None if isinstance(value, bool) else number(value)
    hours, minutes, rest = int(clock[1] or 0), int(clock[2]), float(clock[3])
    return (
        hours * 3600 + minutes * 60 + rest
        if rest < 60 and not (clock[1] and minutes >= 60)
        else None
    )


def span(values: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Start and end of a row's part of its file, in seconds; None, None if it is the whole file.

    Read from the columns `start` (also `start_time`, `start_s`, `offset`) and `end` (also
    `end_time`, `end_s`) or `duration`.  A `duration` alone is only the length of the file.

    Raises:
        ValueError: a time is no time, one of a pair is missing, or the end is not after the start.
    """
    start_name, start = _time(values, (*START_COLUMNS, "offset"))
    end_name, end = _time(values, END_COLUMNS)
    if start is None and end is None:
        return None, None
    if start is not None and end is None:
        name, seconds_long = _time(values, ("duration",))
        if seconds_long is not None or start_name == "offset":
            end_name, end = name, None if seconds_long is None else start + seconds_long
    if start is None or end is None:
        missing, there, found = (start_name, end_name, end) if start is None else (
            end_name, start_name, start)  # fmt: skip
        raise ValueError(
            f"{missing}: no value, but {there} is {found:g} s; a part of a file needs both"
        )
    if start >= end:
        raise ValueError(f"{end_name}: the part ends at {end:g} s, but it starts at {start:g} s")
    return start, end


def _time(values: Mapping[str, Any], columns: tuple[str, ...]) -> tuple[str, float | None]:
    """The first of these columns that has a value, and the value; else the first, and None."""
    there = [name for name in columns if name in values]
    for name in there:
        value = values[name]
        if value is None or (isinstance(value, str) and _is_empty(value)):
            continue
        if (found := seconds(value)) is None:
            raise ValueError(f"{name}: expected seconds or h:m:s, found {_shown(value)}")
        return name, found
    return (there or columns)[0], None


def split_of(value: object, *, beside_train: bool = False) -> str | None:
    """The split (`train`, `valid`, `test`) that a word says, in any case; None if it says none.

    `development` is training data in most audio datasets (DCASE, Clotho).  Beside a split `train`
    (`beside_train`) it is validation.  `dev` is always validation.
    """
    word = value.strip().casefold() if isinstance(value, str) else ""
    if word == "development":
        return "valid" if beside_train else "train"
    return _SPLIT_WORDS.get(word)


def row_split(values: Mapping[str, Any], default: str, *, beside_train: bool) -> str:
    """The split that a row's column `split` says, else the default.

    Raises:
        ValueError: the column says no split (see `split_of`), or there is no default either.
    """
    said = text(values, "split")
    split = (split_of(said, beside_train=beside_train) or "") if said else default
    if not split:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, found {said!r:.80}")
    return split


def says_train(value: object) -> bool:
    """Whether a word says `train` itself: what `split_of` means by `beside_train`."""
    return isinstance(value, str) and value.strip().casefold() in ("train", "training")


def text(values: Mapping[str, Any], column: str) -> str | None:
    """A single text, without blanks around it; a list of texts is joined by commas.

    Raises:
        ValueError: it is a mapping or another value that is no text.
    """
    if (value := values.get(column)) is None:
        return None
    items = value if isinstance(value, (list, tuple)) else [value]
    return ", ".join(found for item in items if (found := _text(item, column))) or None


def texts_of(
    values: Mapping[str, Any], captions: Iterable[str], tags: Mapping[str, str] = _NO_TAGS
) -> Texts:
    """The captions and tags in these columns of a row.

    A text in a caption column is a caption.  A list there holds captions if an item has several
    words, else tags.  A text that is a Python or JSON list is read as the list.  A number is no
    text (a class number, say, without its name).

    Args:
        captions: the caption columns.
        tags: the tag columns, each with the characters that join the tags in one text ("" if a
            text is one tag).

    Raises:
        ValueError: a value is a mapping or something else that is no text; names the column.
    """
    found = Texts()
    for column in captions:
        value = _parsed(values.get(column))
        texts = _several(value, column, found)
        if isinstance(value, str) or any(len(text.split()) > 1 for text in texts):
            found.captions += texts
        else:
            found.tags += texts
    for column, joined in tags.items():
        found.tags += _several(_parsed(values.get(column)), column, found, joined)
    if found.captions or found.tags:
        found.problem = ""
    return found


def _several(value: object, column: str, found: Texts, joined: str = "") -> list[str]:
    """The texts in a value; if there are none although it has a value, notes why in `found`."""
    if value is None:
        return []
    items = value if isinstance(value, (list, tuple)) else [value]
    if isinstance(value, str) and joined:
        items = re.split(f"[{joined}]", value)
    there = [(item, one) for item in items if (one := _text(item, column))]
    texts = [one for _, one in there]
    # Among words a number is a word ("808"), and so is a number that a list holds as a text.
    is_word = [
        isinstance(item, str) and not (isinstance(value, str) and _NUMBER.fullmatch(one))
        for item, one in there
    ]
    problem = ""
    if texts and not any(is_word):
        problem = f"{column}: {_shown(value)} is a number, no text; a class number needs its name"
        texts = []
    elif not texts and isinstance(value, str) and value.strip():
        problem = f"{column}: {_shown(value)} is no text"
    found.problem = found.problem or problem
    return texts


def _text(value: object, column: str) -> str | None:
    """A text, or a number as text; None if it is empty.

    Raises:
        ValueError: the value is neither.
    """
    if not isinstance(value, (str, int, float, type(None))):
        kind = "a mapping" if isinstance(value, Mapping) else f"a {type(value).__name__}"
        raise ValueError(f"{column}: expected a text, found {kind}: {_shown(value)}")
    return None if value is None or _is_empty(str(value)) else str(value).strip()


def _is_empty(value: str) -> bool:
    return value.strip().casefold() in _NO_VALUE


def _shown(value: object) -> str:
    return one_line(f"{value!r:.80}")


def _parsed(value: object) -> object:
    """The list or mapping that a text is the literal of; any other value unchanged."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{") and len(value) <= _MAX_LIST:
        for parse in (json.loads, ast.literal_eval):  # no code is executed
            try:
                found = parse(value.strip())
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                continue
            if isinstance(found, (list, dict)):
                return found
    return value


def literal_list(value: str) -> list[str] | None:
    """The texts in a Python or JSON list literal; None if it is not one.  No code is executed."""
    found = _parsed(value) if value.strip() else []
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        return None
    return [item.strip() for item in found if not _is_empty(item)]


def damaged_id(value: object) -> str:
    """Why a text cannot be an id of YouTube or Freesound: what a spreadsheet made of it.  Empty if
    it can be one."""
    if not isinstance(value, str) or not value:
        return "no id"
    for what, pattern in _SPREADSHEET.items():
        if re.fullmatch(pattern, value):
            return f"id {value!r:.80} is {what}: a spreadsheet saved this file"
    return ""


def no_youtube_id(value: object) -> str:
    """As `damaged_id`, and for texts that are too long: an address, or a file's name `YID.wav`.

    Such a row would hold no clip out.
    """
    is_long = len(str(value)) > YOUTUBE_ID
    return damaged_id(value) or (
        f"id {value!r:.80} is no YouTube id, which has {YOUTUBE_ID} characters" if is_long else ""
    )


def damaged_name(value: object) -> str:
    """As `damaged_id`, for file names, which may hold blanks, commas and quotes."""
    is_name = isinstance(value, str) and re.search(r"[\s,;\"]", value)
    return "" if is_name or not isinstance(value, str) or not value else damaged_id(value)


def audio_stem(name: str) -> str:
    """A file name without its extension, if the extension is one of audio files."""
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in AUDIO_EXTENSIONS else name
