"""Rows for a folder without a list: text in a file beside each sound, or in its folder's name.

rain.wav + rain.txt (its caption) or rain.json (the columns of a row), or both
dog_bark/1.wav                    (tag "dog bark"; only if no sound has a file beside it)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import AttuneError
from common.tables import Row, object_row, read_json
from common.text_files import open_text
from pipeline.catalogs.audio_root import AudioRoot
from pipeline.catalogs.values import split_of


def sidecars(root: Path) -> list[Path]:
    """The .txt and .json files beside the sounds of a tree that have the name of the sound."""
    return [path for name in AudioRoot(root).audio_files(deep=True) for path in _beside(root, name)]


def unlisted_rows(root: Path) -> Iterator[Row]:
    """A row per sound of a tree, with `file_name`; no rows if neither form of text is there.

    Raises:
        AttuneError: the folder cannot be read.
    """
    names = list(AudioRoot(root).audio_files(deep=True))
    if any(_beside(root, name) for name in names):
        yield from (_row_of_sidecars(root, name) for name in names)
    elif len({_class_of(name) for name in names} - {""}) > 1:  # else it is just a folder of sounds
        for name in names:
            yield Row(os.path.join(root, name), {"file_name": name, "label": _class_of(name)})


def _beside(root: Path, name: str) -> list[Path]:
    stem = os.path.splitext(os.path.join(root, name))[0]
    return [Path(stem + end) for end in (".txt", ".json") if os.path.isfile(stem + end)]


def _class_of(name: str) -> str:
    """The innermost folder of a sound that is not the folder of a split, in words."""
    folders = [one for one in os.path.dirname(name).split("/") if not split_of(one)]
    return folders[-1].replace("_", " ").strip() if folders else ""


def _row_of_sidecars(root: Path, name: str) -> Row:
    values: dict[str, Any] = {}
    source = os.path.join(root, name)
    error = ""
    for path in _beside(root, name):
        source = str(path)
        try:
            if path.suffix == ".json":
                row = object_row(source, read_json(path))
                values |= row.values
                error = error or row.error
            else:
                with open_text(path) as file:
                    values["text"] = file.read()
        except AttuneError as problem:
            error = error or str(problem).removeprefix(f"{source}: ")
    return Row(source, values | {"file_name": name}, error)
