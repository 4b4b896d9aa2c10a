"""The files of a codec: where they are, and their hash. Planning needs no more, and no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import AttuneError
from common.hub import hub_snapshot

BUILTIN = Path(__file__).parent / "assets" / "codecs"
"""Codecs that ship with the package, named `builtin:FOLDER`."""

_FILES = ("config.json", "model.safetensors")


def resolve_codec(path: str) -> Path:
    """The folder of a codec: `builtin:NAME`, a folder, or a hub id (fetched if necessary).

    Raises:
        AttuneError: no such codec, or its folder is no `EncodecModel` folder.
    """
    if path.startswith("builtin:"):
        folder = BUILTIN / path.removeprefix("builtin:")
        if not folder.is_dir():
            known = ", ".join(sorted(p.name for p in BUILTIN.glob("*") if p.is_dir())) or "none"
            raise AttuneError(f"codec {path!r}: no such built-in codec; choose from: {known}")
    else:
        folder = Path(path) if Path(path).is_dir() else _from_hub(path)
    for name in _FILES:
        with readable(path, folder / name):
            if not (folder / name).is_file():
                raise AttuneError(
                    f"codec {path!r}: {folder} has no {name}; expected a Hugging Face EncodecModel "
                    "folder, as `python -m training codec --config RECIPE` writes it"
                )
    return folder


def codec_identity(path: str) -> str:
    """Hash of the codec's two files, 16 hex digits; loads no model.

    Raises:
        AttuneError: no such codec, or no permission to read it.
    """
    folder = resolve_codec(path)
    digest = hashlib.blake2b(digest_size=8)
    for name in _FILES:
        with readable(path, folder / name):
            digest.update((folder / name).read_bytes())
    return digest.hexdigest()


@contextmanager
def readable(path: str, file: Path) -> Iterator[None]:
    """Turn a file's error into one that names the codec.

    Raises:
        AttuneError: the file cannot be read.
    """
    try:
        yield
    except OSError as error:
        remedy = "its owner can let others read it (chmod a+rX)"
        remedy = f"; {remedy}" if isinstance(error, PermissionError) else ""
        raise AttuneError(
            f"codec {path!r}: {file} cannot be read: {error.strerror}{remedy}"
        ) from error


def _from_hub(path: str) -> Path:
    try:
        return hub_snapshot(path, _FILES)
    except Exception as error:
        raise AttuneError(
            f"codec {path!r}: no such folder, and the Hugging Face hub did not give it "
            f"({type(error).__name__}); train a codec (python -m training codec --config RECIPE), "
            "or set codec.path=builtin:sfx-small"
        ) from error
