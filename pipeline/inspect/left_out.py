"""What catalogs have and no reader uses: columns that are not read, and files that no row names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from common.audio import AUDIO_EXTENSIONS
from pipeline.catalogs import CatalogEntry
from pipeline.rows import plain

_EXAMPLES = 3
_EXTENSION = rf"(?i)({'|'.join(ending.replace('.', '[.]') for ending in AUDIO_EXTENSIONS)})$"


def left_out(catalogs: Sequence[CatalogEntry], rows: pa.Table) -> dict[str, Any]:
    """Columns and audio files that are there and not used.

    Args:
        rows: all rows of the catalogs (`Decision.rows`).

    Returns:
        unread_columns: names by the catalog's label; unlisted_files: by audio folder, `files` (the
        number of audio files in it that no row of any catalog names) and `examples` of them.

    Raises:
        AttuneError: a list or an audio folder cannot be read.
    """
    columns: dict[str, dict[str, None]] = {}
    for catalog in catalogs:
        for column in catalog.fetched().unread_columns():
            columns.setdefault(catalog.label, {})[column] = None
    return {
        "unread_columns": {label: list(names) for label, names in columns.items()},
        "unlisted_files": _unlisted(catalogs, rows),
    }


def _unlisted(catalogs: Sequence[CatalogEntry], rows: pa.Table) -> dict[str, Any]:
    """Files are compared without their extensions: of a.flac and a.wav one is enough."""
    named: pa.Array | None = None
    found = {}
    searched = [catalog for catalog in catalogs if catalog.audio_folder() is not None]
    deep = {str(c.audio_folder()): False for c in searched}
    deep |= {str(c.audio_folder()): True for c in searched if c.searches_folders}
    for catalog in searched:
        folder = str(catalog.audio_folder())
        root = catalog.open_audio(folder)
        if root.is_blind or folder in found:
            continue
        if named is None:  # not before it is needed: of two million rows it takes 1.4 GB
            named = _without_extension(_names(rows))
        names = pa.array(sorted(root.audio_files(deep=deep[folder])), pa.string())
        stems = _without_extension(names)
        paths = pc.binary_join_element_wise(root.place, stems, "")
        is_named = pc.or_(pc.is_in(stems, value_set=named), pc.is_in(paths, value_set=named))
        left = names.filter(pc.invert(is_named))
        found[folder] = {"files": len(left), "examples": left[:_EXAMPLES].to_pylist()}
    return {folder: entry for folder, entry in found.items() if entry["files"]}


def _names(rows: pa.Table) -> pa.Array:
    """The paths of the rows' files.  Of rows whose file was not looked for, because they were
    refused before or their catalog needs no audio: the names that their file may have."""
    rows = rows.select(["audio_uri", "real_uri", "native_id", "group_id", "clip"])
    uri, join = plain(rows["audio_uri"]), pc.binary_join_element_wise
    real = plain(rows["real_uri"])  # of a file in an archive
    unseen = pc.invert(
        pc.fill_null(pc.match_substring_regex(uri, "^(/|s3:|member:|value:)"), False)
    )
    native, group, clip = (plain(rows[name].filter(unseen)) for name in rows.column_names[2:])
    youtube_id = pc.replace_substring_regex(group, "^[a-z]+:", "")
    segment = pc.replace_substring(pc.replace_substring_regex(clip, "^[a-z]+:", ""), "@", "_")
    candidates = (
        uri, real, native, youtube_id, join("Y", youtube_id, ""), segment, join(segment, "000", ""),
    )  # fmt: skip
    return pc.unique(pa.concat_arrays([names.drop_null() for names in candidates]))


def _without_extension(names: pa.Array) -> pa.Array:
    return pc.replace_substring_regex(names, _EXTENSION, "")
