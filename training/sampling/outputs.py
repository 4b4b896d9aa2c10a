"""Around generation: prompts out of files, clips into files."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import unicodedata
import uuid
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
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
"""Of a clip's name. File systems take 255, with what is put behind it while it is written."""
_SLUG_BYTES = 80


@dataclass(frozen=True)
class Prompt:
    """One line of a prompts file."""

    text: str
    seed: int | None = None
    name: str = ""
    """Of the files, without ending; made from the prompt if empty."""


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
    kind = path.suffix.lower()
    if kind == ".csv":
        reader = csv.DictReader(io.StringIO(content, newline=""))
        columns = reader.fieldnames or []
        if not set(columns) & set(_COLUMNS):
            raise AttuneError(
                f"prompts {path}: no column prompt, caption or text in its header "
                f"({', '.join(columns)[:100]})"
            )
        return [_prompt(path, reader.line_num, row) for row in reader]
    # Other characters that str.splitlines takes for an end may stand within a JSON string.
    lines = [(i, line.strip()) for i, line in enumerate(content.split("\n"), 1) if line.strip()]
    if kind in (".jsonl", ".ndjson"):
        return [_prompt(path, i, _object(path, i, line)) for i, line in lines]
    return [Prompt(line) for _, line in lines]


def _object(path: Path, line: int, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise AttuneError(f"prompts {path}, line {line}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise AttuneError(f"prompts {path}, line {line}: expected an object with a prompt")
    return found


def _prompt(path: Path, line: int, row: dict[str, Any]) -> Prompt:
    text = next((row[name] for name in _COLUMNS if row.get(name)), None)
    if not isinstance(text, str) or not text.strip():
        raise AttuneError(f"prompts {path}, line {line}: no prompt")
    seed, name = row.get("seed"), row.get("name") or ""
    try:
        number = None if seed in (None, "") else int(str(seed))
    except ValueError:
        number = -1
    if number is not None and number < 0:
        raise AttuneError(
            f"prompts {path}, line {line}: seed {seed!r} is not a whole number from 0 on"
        )
    if not isinstance(name, str) or (name and not re.fullmatch(r"[\w-][\w .-]*", name)):
        raise AttuneError(
            f"prompts {path}, line {line}: name {name!r} is no file name (letters, digits, "
            "spaces, - _ .)"
        )
    if len(name.encode()) > _NAME_BYTES:
        raise AttuneError(
            f"prompts {path}, line {line}: name {name[:40]!r}... is longer than {_NAME_BYTES} bytes"
        )
    return Prompt(text.strip(), number, name)


def check_folder(folder: Path, option: str = "--out") -> None:
    """Make a folder, if need be, and see that files can be written into it.

    Args:
        option: that names it.

    Raises:
        AttuneError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise AttuneError(f"{option} {folder}: cannot be written: {error}") from error


def find_place(folder: Path, name: str, facts: dict[str, Any], kind: Format) -> tuple[Path, bool]:
    """Where a clip is or can be written without overwriting another one.

    Args:
        name: without ending; `-2`, `-3`, ... is put behind it where it stands for something else.
        facts: as `write_clip` writes them.

    Returns:
        The clip's path, and whether it is there already, made just so.
    """
    # As they come back out of a file.
    asked = json.loads(json.dumps(facts))
    for number in count(1):
        stem = name if number == 1 else f"{name}-{number}"
        path, sidecar = folder / f"{stem}.{kind}", folder / f"{stem}.json"
        if _read_facts(sidecar) == asked:
            return path, path.is_file()
        # A clip without facts may be anyone's.
        sounds = [folder / f"{stem}.{other}" for other in get_args(Format)]
        if not any(os.path.lexists(taken) for taken in (sidecar, *sounds)):
            return path, False
    raise AssertionError("numbers end")


def _read_facts(sidecar: Path) -> Any:
    try:
        return json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_clip(
    folder: Path, name: str, wave: NDArray[np.float32], facts: dict[str, Any], kind: Format
) -> dict[str, Any]:
    """Write a clip (16 bits) and the facts beside it as JSON.

    Facts are there only beside a whole file that they are true of, whenever this is interrupted:
    the same command, run again, trusts them.

    Args:
        wave: float32 `[S]`.
        facts: with the `sample_rate`.

    Returns:
        The facts and, as `wav` or `flac`, the path.

    Raises:
        AttuneError: it cannot be written (a full disk).
    """
    path = folder / f"{name}.{kind}"
    sidecar = path.with_suffix(".json")
    # Two commands may make the same clip at once.
    ending = f"{uuid.uuid4().hex}.partial"
    partial, described = (one.with_name(f"{one.name}.{ending}") for one in (path, sidecar))
    rate = facts["sample_rate"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sidecar.unlink(missing_ok=True)
        soundfile.write(partial, np.clip(wave, -1.0, 1.0), rate, subtype="PCM_16", format=kind)
        described.write_text(json.dumps(facts, indent=2) + "\n")
        # Only now: a clip whose facts find no room would keep its name from the next one.
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
    """A file name out of a text: its letters and digits, of any script; at most 80 bytes."""
    plain = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    # Marks, such as vowels in Indic scripts, belong to the letter before them.
    kept = "".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in plain)
    words = "-".join(word for word in kept.split() if any(map(str.isalnum, word)))
    return words.encode()[:_SLUG_BYTES].decode(errors="ignore").rstrip("-") or "prompt"
