"""WebDataset tars: files whose names are equal up to the first dot are one sample.

000001.flac  000001.json  000002.flac  000002.txt  000002.cls  ...

JSON holds the columns of an `audiofolder` row; LAION's `tag` is one of them.  `.txt` is a caption,
`.cls` a class by name.  Each tar is read once, from its first header to its last, and the contents
of sounds are skipped.

The same key may be in several tars, so a sample is known by its tar and its key.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from common.errors import AttuneError, one_line
from common.schema import Record
from common.tables import json_row
from common.uris import remote_uri
from pipeline.catalogs.archives import find_archives, fixed_folder, read_tar
from pipeline.catalogs.base import Catalog, CatalogPath, Outcome, Refusal, Split, refuse
from pipeline.catalogs.file_names import has_audio_extension, is_audio, is_rest, is_utf8
from pipeline.catalogs.values import (
    CAPTION_COLUMN,
    length,
    row_split,
    says_train,
    split_of,
    text,
    texts_of,
)

_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_TAGS = {"tags": ";", "tag": ";", "keywords": ";", "labels": ";", "label": ";", "cls": ""}
_OTHERS = ("split", "group", "title", "artist", "genre", "license", "license_url", "duration")
_TEXTS = (".json", ".txt", ".cls")
_MOST_BYTES = 1 << 20
"""Limit of a text file."""
_FIRST = 1000


@dataclass
class _Sample:
    """The files of one key in a tar."""

    sounds: list[tuple[str, str, str]] = field(default_factory=list)
    """Address, name and problem of each audio file."""
    values: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    """Why its texts cannot be read."""


class WebDataset(Catalog):
    dataset: Literal["webdataset"] = "webdataset"
    audio: CatalogPath
    """A tar, or a pattern: `/data/*/*.tar`, `s3://bucket/x/*.tar`."""
    split: Split | None = None
    """By default that of each tar's folder (`train/000.tar`) or first word (`test-000.tar`), else
    train.  A sample's own `split` counts before both."""

    def sources(self) -> list[Path]:
        return []

    def audio_folder(self) -> None:
        """None: a sound without a text is a refused sample, not a file that no row names."""

    def read(self) -> Iterator[Outcome]:
        tars = self._tars()
        has_train = any(says_train(word) for tar in tars for word in _words(tar))
        folder = fixed_folder(self.audio)
        for tar in tars:
            said = [split_of(word, beside_train=has_train) for word in _words(tar)]
            split: str = self.split or said[0] or said[1] or "train"
            inside = os.path.splitext(posixpath.relpath(tar, folder))[0]
            for key, sample in _samples(tar).items():
                yield self._outcome(tar, posixpath.join(inside, key), key, sample, split, has_train)

    def unread_columns(self) -> list[str]:
        known = {*_TAGS, *_OTHERS, "txt"}
        return [n for n in self._columns() if n not in known and not CAPTION_COLUMN.fullmatch(n)]

    def text_columns(self) -> str:
        return (
            f"columns: {one_line(', '.join(self._columns()))}; text is read from .txt, .cls and, "
            f"in .json, text, caption, description (also caption_1, ...), {', '.join(_TAGS)}"
        )

    def _tars(self) -> list[str]:
        found = find_archives(self.audio)
        if other := next((name for name in found if not name.lower().endswith(".tar")), None):
            raise AttuneError(f"catalog {self.label}: {other}: expected tars")
        return found

    def _columns(self) -> dict[str, None]:
        """The keys in the first JSON files of the first tar."""
        files = read_tar(self._tars()[0], lambda name: name.endswith(".json"), _MOST_BYTES)
        rows = (json_row("", content).values for _, content in islice(files, _FIRST) if content)
        return dict.fromkeys(name for values in rows for name in values)

    def _outcome(
        self, tar: str, native_id: str, key: str, sample: _Sample, split: str, has_train: bool
    ) -> Record | Refusal:
        source, values, problem = f"{tar}!/{key}", sample.values, sample.problem
        place = tar if remote_uri(tar) else os.path.realpath(tar)
        address, name, fault = sample.sounds[0] if sample.sounds else ("", "", "")
        real = f"{place}!/{posixpath.normpath(name)}" if name else ""
        group = None
        try:
            group = text(values, "group")
            split = row_split(values, split, beside_train=has_train)
            captions = [name for name in values if CAPTION_COLUMN.fullmatch(name)]
            texts = texts_of(values, [*captions, "txt"], _TAGS)
            about = ("title", "artist", "genre", "license", "license_url")
            more = {column: text(values, column) for column in about}
            problem = problem or texts.problem
        except ValueError as error:
            problem = problem or str(error)
        group = group or f"{self.label}:{native_id}"
        if len(sample.sounds) > 1:
            names = " and ".join(name for _, name, _ in sample.sounds[:2])
            problem = problem or f"{len(sample.sounds)} audio files of one key: {names}"
        if problem:
            return self.malformed(
                source, native_id, problem, group_id=group, split=split, real_uri=real
            )
        record = self.record(
            source,
            native_id,
            group,
            split=split,
            tags=list(dict.fromkeys(texts.tags)),
            captions=list(dict.fromkeys(texts.captions)),
            stated_s=length(values.get("duration")),
            **more,
        )
        record.audio_uri, record.real_uri = address, real
        if not address:
            return refuse(record, "catalog", "missing_audio", f"no audio file {key}.* in {tar}")
        if fault:
            return refuse(record, "catalog", "outside_root", f"{name!r} in {tar} {fault}")
        return record


def _words(tar: str) -> tuple[str, str]:
    """What may say a tar's split: its folder, and the first word of its name."""
    folder, name = posixpath.split(tar)
    return posixpath.basename(folder), re.split(r"[-_.]", name)[0]


def _samples(tar: str) -> dict[str, _Sample]:
    """The samples of a tar by key, in order; their files need not be neighbours."""
    found: dict[str, _Sample] = {}
    for entry, content in read_tar(tar, _is_text, _MOST_BYTES):
        name = entry.member.name
        parts = _KEY.fullmatch(posixpath.normpath(name))
        if parts is None or not is_utf8(name) or not (_is_text(name) or is_audio(name)):
            continue
        sample = found.setdefault(parts[1], _Sample())
        if has_audio_extension(name):
            sample.sounds.append((str(entry.member), name, entry.problem))
        elif entry.problem or entry.size > _MOST_BYTES:
            fault = entry.problem or f"has {entry.size} bytes, expected at most {_MOST_BYTES}"
            sample.problem = sample.problem or f"{name} {fault}"
        else:
            _add(sample, name, content)
    return found


def _add(sample: _Sample, name: str, content: bytes) -> None:
    """Add the values of a text file to a sample."""
    extension = os.path.splitext(name)[1].lower()
    values: dict[str, Any] = {}
    problem = ""
    if extension == ".json":
        row = json_row(name, content)
        values, problem = row.values, row.error
    else:
        try:
            values = {extension[1:]: content.decode("utf-8-sig")}
        except UnicodeDecodeError:
            problem = "is not UTF-8 text"
    # A sample's own .txt and .cls are not those that its JSON may also name so.
    sample.values = values | sample.values if extension == ".json" else sample.values | values
    if problem:
        sample.problem = sample.problem or f"{name}: {problem}"


def _is_text(name: str) -> bool:
    return name.lower().endswith(_TEXTS) and not is_rest(name)
