"""Read prompts from files, and write clips to files."""

from __future__ import annotations

import json
import os
import re
import unicodedata
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal, get_args

import numpy as np
import soundfile
from numpy.typing import NDArray

from common.errors import AttuneError
from common.tables import Row, object_row, read_csv, read_json, read_jsonl, read_parquet
from common.text_files import open_text

Format = Literal["wav", "flac"]

_COLUMNS = ("prompt", "caption", "text")
_NAME_BYTES = 180
"""Longest name of a clip. File systems allow 255 bytes, and a partial file's name is longer."""
_SLUG_BYTES = 80


@dataclass(frozen=True)
class Prompt:
    """A text to make clips of."""

    text: str
    seed: int | None = None
    name: str = ""
    """Name of the clip's files without suffix; made from the prompt if empty."""
    source: str = field(default="", compare=False)
    """FILE:LINE; empty for a prompt of the command line."""


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts of a table (CSV, TSV, JSON, JSON lines, Parquet), or one per line of another file.

    A table has a `prompt` (or `caption`, `text`) and may have `seed` and `name`. A JSON list may
    also hold the texts themselves.

    Raises:
        AttuneError: naming file, line and what was expected.
    """
    match path.suffix.lower():
        case ".csv" | ".tsv":
            rows = read_csv(path, [_column(path)])
        case ".json":
            rows = _json_rows(path)
        case ".jsonl" | ".ndjson":
            rows = read_jsonl(path)
        case ".parquet":
            rows = read_parquet(path)
        case _:
            with open_text(path) as file:
                lines = [(number, line.strip()) for number, line in enumerate(file, start=1)]
            return [Prompt(line, source=f"{path}:{number}") for number, line in lines if line]
    return [_prompt(row) for row in rows]


def _column(path: Path) -> str:
    """The column of prompts in a file with a header."""
    with open_text(path) as file:
        header = next((line for line in file if line.strip()), "")
    names = [name.strip().strip('"') for name in re.split(r"[,;\t|]", header)]
    return next((name for name in _COLUMNS if name in names), "prompt, caption or text")


def _json_rows(path: Path) -> Iterator[Row]:
    data = read_json(path)
    entries = data.get("data") if isinstance(data, dict) else data
    if not isinstance(entries, list):
        raise AttuneError(f'{path}: expected a list of prompts, or {{"data": [...]}}')
    for number, entry in enumerate(entries, start=1):
        values = {"prompt": entry} if isinstance(entry, str) else entry
        yield object_row(f"{path}:{number}", values)


def _prompt(row: Row) -> Prompt:
    error, values = row.error, row.values
    text = next((values[name] for name in _COLUMNS if values.get(name)), None)
    seed, name = values.get("seed"), values.get("name") or ""
    if error:
        pass
    elif not isinstance(text, str) or not text.strip():
        error = "no prompt"
    elif not (seed in (None, "") or (str(seed).isascii() and str(seed).isdigit())):
        error = f"seed {seed!r} is not a whole number, 0 or more"
    elif not isinstance(name, str) or (name and not re.fullmatch(r"[\w-][\w .-]*", name)):
        error = f"name {name!r} is not a file name (letters, digits, spaces, - _ .)"
    elif len(name.encode()) > _NAME_BYTES:
        error = f"name {name[:40]!r}... is longer than {_NAME_BYTES} bytes"
    else:
        whole = None if seed in (None, "") else int(str(seed))
        return Prompt(text.strip(), whole, name, row.source)
    raise AttuneError(f"{row.source}: {error}")


def check_folder(folder: Path, option: str = "--out") -> None:
    """Make a folder if there is none, and check that files can be written into it.

    Args:
        option: the option that names the folder, for messages.

    Raises:
        AttuneError: no file can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise AttuneError(f"{option} {folder}: cannot be written: {error}") from error


def find_place(folder: Path, name: str, facts: dict[str, Any], kind: Format) -> tuple[Path, bool]:
    """The path where a clip is, or can be written without overwriting another clip.

    Args:
        name: without suffix; `-2`, `-3`, ... is appended if another clip has the name.
        facts: as `write_clip` writes them.

    Returns:
        The clip's path, and whether the same clip is there already.
    """
    # Facts as they are read back from a file, for example with lists instead of tuples.
    asked = json.loads(json.dumps(facts))
    stem, number = name, 1
    while True:
        path, sidecar = folder / f"{stem}.{kind}", folder / f"{stem}.json"
        if _read_facts(sidecar) == asked:
            return path, path.is_file()
        # A sound without facts may be anyone's, so it is not overwritten either.
        sounds = [folder / f"{stem}.{other}" for other in get_args(Format)]
        if not any(os.path.lexists(taken) for taken in (sidecar, *sounds)):
            return path, False
        number += 1
        stem = f"{name}-{number}"


def _read_facts(sidecar: Path) -> Any:
    with suppress(OSError, ValueError):
        return json.loads(sidecar.read_text(encoding="utf-8"))
    return None


def write_clip(
    folder: Path, name: str, wave: NDArray[np.float32], facts: dict[str, Any], kind: Format
) -> dict[str, Any]:
    """Write a clip (16 bits), and its facts beside it as JSON.

    Whenever this is interrupted, facts are only beside a complete file that they describe, because
    the same command trusts them when it is run again.

    Args:
        wave: float32 `[S]`.
        facts: must have the `sample_rate`.

    Returns:
        The facts, and the path as `wav` or `flac`.

    Raises:
        AttuneError: it cannot be written (a full disk).
    """
    path = folder / f"{name}.{kind}"
    sidecar = path.with_suffix(".json")
    # Random names, because two commands may make the same clip at once.
    ending = f"{uuid.uuid4().hex}.partial"
    partial, described = (one.with_name(f"{one.name}.{ending}") for one in (path, sidecar))
    rate = facts["sample_rate"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sidecar.unlink(missing_ok=True)
        soundfile.write(partial, np.clip(wave, -1.0, 1.0), rate, subtype="PCM_16", format=kind)
        described.write_text(json.dumps(facts, indent=2) + "\n")
        # After the facts are written: if the disk has no room for them, no clip is left either.
        partial.replace(path)
        described.replace(sidecar)
    except (OSError, soundfile.LibsndfileError) as error:
        raise AttuneError(f"{path}: cannot be written: {error}") from error
    finally:
        for left in (partial, described):
            with suppress(OSError):
                left.unlink(missing_ok=True)
    return facts | {kind: str(path)}


def slug(text: str) -> str:
    """A file name from a text: its letters and digits, of any script; at most 80 bytes."""
    plain = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    # Marks, such as vowels in Indic scripts, belong to the letter before them.
    kept = "".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in plain)
    words = "-".join(word for word in kept.split() if any(map(str.isalnum, word)))
    return words.encode()[:_SLUG_BYTES].decode(errors="ignore").rstrip("-") or "prompt"
