"""Modes of files: safetensors writes for a file's owner alone, whatever the umask says."""

from __future__ import annotations

import stat
import uuid
from pathlib import Path


def as_any_file(path: Path) -> None:
    """Give a file the mode of any new file beside it.

    The umask can be read only by changing it, for all threads: a file made for that tells it.

    Raises:
        OSError: none can be made there.
    """
    example = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    example.touch(exist_ok=False)
    try:
        mode = stat.S_IMODE(example.stat().st_mode)
    finally:
        example.unlink()
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)
