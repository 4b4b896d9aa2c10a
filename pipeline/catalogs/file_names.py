"""What the name of a file in a folder, bucket or archive says about it."""

from __future__ import annotations

import os
import posixpath

from common.audio import AUDIO_EXTENSIONS


def is_audio(path: str) -> bool:
    """Whether a file in a tree is audio by its name, also with a blank after its extension."""
    return has_audio_extension(path.strip()) and not is_rest(path)


def is_rest(path: str) -> bool:
    """Whether macOS made the file: `._x.wav` beside x.wav on other file systems, `__MACOSX/` in
    archives."""
    return posixpath.basename(path).startswith("._") or "__MACOSX" in path.split("/")


def has_audio_extension(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in AUDIO_EXTENSIONS


def is_utf8(name: str) -> bool:
    """Whether a file name can be stored in a table; Python keeps other bytes as surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
