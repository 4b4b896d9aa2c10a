"""Convert values in catalogs to values in records; None if there is no value."""

from __future__ import annotations

import ast
import json
import math
import os
import re
from typing import Any

from common.audio import AUDIO_EXTENSIONS

_MAX_LIST = 20_000  # characters; a longer text is not parsed as a list literal


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


def text(value: object) -> str | None:
    """A value as text, without blanks around it."""
    return (str(value).strip() or None) if value is not None else None


def texts(value: object) -> list[str]:
    """The texts in a list, or a single text as a list."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return [found for found in map(text, values) if found]


def literal_list(value: str) -> list[str] | None:
    """The texts in a Python or JSON list literal; None if it is not one.  No code is executed."""
    if not value.strip():
        return []
    if len(value) > _MAX_LIST:
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            found: Any = parse(value.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        if isinstance(found, list) and all(isinstance(item, str) for item in found):
            return texts(found)
    return None


def keywords(value: object) -> list[str]:
    """The texts in a list, in a list literal, or in texts joined by `;` or `,`."""
    if not isinstance(value, str):
        return texts(value)
    if value.lstrip().startswith("[") and (found := literal_list(value)) is not None:
        return found
    return texts(re.split("[;,]", value))


def audio_stem(name: str) -> str:
    """A file name without its extension, if the extension is one of audio files."""
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in AUDIO_EXTENSIONS else name
