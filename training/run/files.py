"""Modes of files, and writing that survives a crash."""

from __future__ import annotations

import os
import stat
import uuid
from pathlib import Path


def as_any_file(path: Path) -> None:
    """Give a file the mode of any new file beside it; safetensors' files have 0600 at any umask.

    Python can only read the umask by changing it, for all threads. So a file is made to see its
    mode.

    Raises:
        OSError: no file can be made there.
    """
    example = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    example.touch(exist_ok=False)
    try:
        mode = stat.S_IMODE(example.stat().st_mode)
    finally:
        example.unlink()
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file; readers see the old or the new content, also after a crash."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    to_disk(path.parent)


def to_disk(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk, so that they survive a crash."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
