"""Output folders that appear complete or not at all, and never replace other people's files."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from common.errors import AttuneError, one_line
from training.interop.sources import read_object
from training.run.files import as_any_file

RECORD = "attune.json"
"""File of an export that describes it and lists its files, so that it can be recognized."""


def check_free(to: Path, replace: bool) -> None:
    """Refuse a target that holds something, before any work is done.

    Args:
        to: folder to be written.
        replace: allow an earlier export there, if it has no other files in it.

    Raises:
        AttuneError: it holds anything else.
    """
    above = next((parent for parent in to.parents if parent.exists()), Path())
    if not to.name or not above.is_dir():
        raise AttuneError(f"--to {to}: not a folder, or below a file; name a folder")
    if not os.path.lexists(to):
        return
    if to.is_symlink() or not to.is_dir():
        raise AttuneError(f"--to {to}: exists and is not a folder; name another")
    found = {str(path.relative_to(to)) for path in to.rglob("*") if not path.is_dir()}
    if not found:
        return
    own = set(read_record(to).get("files", [])) if replace else set()
    if not own:
        what = " and is no earlier export" if replace else ""
        raise AttuneError(f"--to {to}: is not empty{what}; name another folder, or remove it")
    others = sorted(found - own - {RECORD})
    if others:
        raise AttuneError(
            f"--to {to}: holds an earlier export, but {others[0]} is not of it; move that file "
            "away or name another folder"
        )


@contextmanager
def staged(to: Path, replace: bool) -> Iterator[Path]:
    """Make a folder to write into, which is renamed to `to` at the end.

    It is made inside a temporary folder beside `to`.  An earlier export is moved there until the
    new one is in its place.

    Raises:
        AttuneError: `to` is taken (`check_free`), or cannot be written.
    """
    check_free(to, replace)
    room: Path | None = None
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(prefix=f"{to.name}.partial-", dir=to.parent))
        # Not `room` itself: only its owner may read a folder that `mkdtemp` makes.
        new, old = room / "new", room / "old"
        new.mkdir()
        yield new
        for weights in new.rglob("*.safetensors"):
            as_any_file(weights)
        check_free(to, replace)  # again, because writing may have taken minutes
        if to.is_dir():
            to.rename(old)
        new.rename(to)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise AttuneError(f"--to {to}: cannot be written: {reason}") from error
    finally:
        if room is not None:
            old = room / "old"
            if old.is_dir() and (room / "new").is_dir():  # the new one did not replace it
                try:
                    old.rename(to)
                except OSError as error:
                    raise AttuneError(
                        f"--to {to}: cannot be written, and the earlier export cannot be put back: "
                        f"{error.strerror}; it is kept in {old}"
                    ) from error
            shutil.rmtree(room, ignore_errors=True)


def write_record(folder: Path, facts: dict[str, Any]) -> None:
    """Write `attune.json`: the facts, and the names of all files beside it."""
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    (folder / RECORD).write_text(json.dumps(facts | {"files": files}, indent=2) + "\n")


def read_record(folder: Path) -> dict[str, Any]:
    """What `write_record` wrote; empty for a folder that is not an export of ours."""
    return read_object(folder / RECORD)
