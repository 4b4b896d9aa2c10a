"""Output folders that appear whole or not at all, and never in place of somebody else's files."""

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
from training.run.files import as_any_file

RECORD = "attune.json"
"""What an export says about itself; lists its files, so that it is known again."""


def check_free(to: Path, replace: bool) -> None:
    """Refuse a target that holds something, before any work is done.

    Args:
        to: folder to be written.
        replace: an earlier export may lie there, with no other files in it.

    Raises:
        AttuneError: it holds anything else.
    """
    above = next((parent for parent in to.parents if parent.exists()), Path())
    if not to.name or not above.is_dir():
        raise AttuneError(f"--to {to}: not a folder, or below a file; name a folder")
    if not os.path.lexists(to):
        return
    if to.is_symlink() or not to.is_dir():
        raise AttuneError(f"--to {to}: exists and is no folder; name another")
    found = {str(path.relative_to(to)) for path in to.rglob("*") if not path.is_dir()}
    if not found:
        return
    own = _files(to / RECORD) if replace else set()
    if not own:
        what = " and is no earlier export" if replace else ""
        raise AttuneError(f"--to {to}: is not empty{what}; name another folder, or remove it")
    others = sorted(found - own - {RECORD})
    if others:
        raise AttuneError(
            f"--to {to}: holds an earlier export, but {others[0]} is not of it; move it away or "
            "name another folder"
        )


@contextmanager
def staged(to: Path, replace: bool) -> Iterator[Path]:
    """A folder to write into, which is renamed to `to` at the end.

    It lies in a folder of its own beside `to`, and so does an earlier export until the new one is
    in its place; nothing else there is touched.

    Raises:
        AttuneError: `to` is taken (`check_free`), or cannot be written.
    """
    check_free(to, replace)
    room: Path | None = None
    replaced = True
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(prefix=f"{to.name}.partial-", dir=to.parent))
        # Below: only its owner may read what `mkdtemp` makes.
        new, old = room / "new", room / "old"
        new.mkdir()
        yield new
        for weights in new.rglob("*.safetensors"):
            as_any_file(weights)
        check_free(to, replace)  # minutes may have passed
        if to.is_dir():
            replaced = False
            to.rename(old)
        new.rename(to)
        replaced = True
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise AttuneError(f"--to {to}: cannot be written: {reason}") from error
    finally:
        if room is not None:
            if not replaced:
                _put_back(room / "old", to)
            shutil.rmtree(room, ignore_errors=True)


def _put_back(old: Path, to: Path) -> None:
    """Undo moving an earlier export aside, if it was.

    Raises:
        AttuneError: that fails as well, and it stays where it is.
    """
    if not old.is_dir():
        return
    try:
        old.rename(to)
    except OSError as error:
        raise AttuneError(
            f"--to {to}: cannot be written, and the earlier export cannot be put back: "
            f"{error.strerror}; it is kept in {old}"
        ) from error


def write_record(folder: Path, facts: dict[str, Any]) -> None:
    """`attune.json`: the facts, and the names of all files beside it."""
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    (folder / RECORD).write_text(json.dumps(facts | {"files": files}, indent=2) + "\n")


def read_record(folder: Path) -> dict[str, Any]:
    """What `write_record` wrote; empty in a folder that is no export of ours."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _files(record: Path) -> set[str]:
    files = read_record(record.parent).get("files")
    return set(files) if isinstance(files, list) else set()
