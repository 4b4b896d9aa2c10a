"""Archives for tests: files packed into a zip or tar."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path


def pack(path: Path, files: Mapping[str, bytes], *, deflate: bool = False) -> Path:
    """Write `files` (content by name), in order, to a .zip or .tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        method = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path


def pack_names(path: Path, *names: str) -> Path:
    """An archive of files that each hold their own name."""
    return pack(path, {name: name.encode() for name in names})
