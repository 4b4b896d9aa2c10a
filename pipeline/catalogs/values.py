"""Values as catalogs write them -> values as records have them; None where there is none."""

from __future__ import annotations

import ast
import json
import math
import os
import re
from typing import Any

from common.audio import AUDIO_EXTENSIONS

_MAX_LIST = 20_000
"""Characters of a list literal that are looked at."""


def seconds(value: object) -> float | None:
    """A time of zero or more, given as a number or its text."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if 0 <= number < math.inf else None


def length(value: object) -> float | None:
    """A time above zero, given as a number or its text."""
    return seconds(value) or None


def whole_seconds(value: object) -> int | None:
    """A time of zero or more, down to the second."""
    number = seconds(value)
    return None if number is None else int(number)


def text(value: object) -> str | None:
    """What is no text as it is written, trimmed."""
    return (str(value).strip() or None) if value is not None else None


def texts(value: object) -> list[str]:
    """A list's texts, or the one text that stands in its place."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return [found for found in map(text, values) if found]


def literal_list(value: str) -> list[str] | None:
    """The texts of a Python or JSON list literal; None if it is none. Nothing is evaluated."""
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
            return [item.strip() for item in found if item.strip()]
    return None


def keywords(value: object) -> list[str]:
    """A list, its literal, or texts joined by `;` or `,`."""
    if not isinstance(value, str):
        return texts(value)
    if value.lstrip().startswith("[") and (found := literal_list(value)) is not None:
        return found
    return texts(re.split("[;,]", value))


def audio_stem(name: str) -> str:
    """A file name without the extension, if that is one of audio files."""
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in AUDIO_EXTENSIONS else name
