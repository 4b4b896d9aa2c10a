"""Read prompts from files, and write clips to files."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import unicodedata
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal, get_args

import numpy as np
import soundfile
from numpy.typing import NDArray

from common.errors import AttuneError

Format = Literal["wav", "flac"]

_COLUMNS = ("prompt", "caption", "text")
_NAME_BYTES = 180
"""Longest name of a clip. File systems allow 255 bytes, and a partial file's name is longer."""
_SLUG_BYTES = 80


@dataclass(frozen=True)
class Prompt:
    """One line of a prompts file."""

    text: str
    seed: int | None = None
    name: str = ""
    """Name of the clip's files without suffix; made from the prompt if empty."""


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts of a text file (one per line), CSV (with a header) or JSONL.

    CSV and JSONL have a `prompt` (or `caption`, `text`) and may have `seed` and `name`.

    Raises:
        AttuneError: naming file, line and what was expected.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise AttuneError(f"prompts {path}: cannot be read as text: {error}") from error
    # Not str.splitlines, which also splits at characters that a JSON string may hold.
    lines = [(i, line.strip()) for i, line in enumerate(content.split("\n"), 1) if line.strip()]
    rows: Iterable[tuple[int, Any]]
    match path.suffix.lower():
        case ".csv":
            reader = csv.DictReader(io.StringIO(content, newline=""))
            columns = reader.fieldnames or []
            if not set(columns) & set(_COLUMNS):
                raise AttuneError(
                    f"prompts {path}: no column prompt, caption or text in its header "
                    f"({', '.join(columns)[:100]})"
                )
            rows = ((reader.line_num, row) for row in reader)
        case ".jsonl" | ".ndjson":
            rows = lines
        case _:
            return [Prompt(line) for _, line in lines]
    prompts = []
    for number, row in rows:
        try:
            prompts.append(_prompt(json.loads(row) if isinstance(row, str) else row))
        except ValueError as error:
            kind = "not JSON: " if isinstance(error, json.JSONDecodeError) else ""
            raise AttuneError(f"prompts {path}, line {number}: {kind}{error}") from error
    return prompts


def _prompt(row: Any) -> Prompt:
    if not isinstance(row, dict):
        raise ValueError("expected an object with a prompt")
    text = next((row[name] for name in _COLUMNS if row.get(name)), None)
    if not isinstance(text, str) or not text.strip():
        raise ValueError("no prompt")
    seed, name = row.get("seed"), row.get("name") or ""
    if seed in (None, ""):
        seed = None
    elif str(seed).isascii() and str(seed).isdigit():
        seed = int(str(seed))
    else:
        raise ValueError(f"seed {seed!r} is not a whole number, 0 or more")
    if not isinstance(name, str) or (name and not re.fullmatch(r"[\w-][\w .-]*", name)):
        raise ValueError(f"name {name!r} is not a file name (letters, digits, spaces, - _ .)")
    if len(name.encode()) > _NAME_BYTES:
        raise ValueError(f"name {name[:40]!r}... is longer than {_NAME_BYTES} bytes")
    return Prompt(text.strip(), seed, name)


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
