"""Parquet files that hold the audio themselves, as Hugging Face exports a dataset.

The audio is a struct of `bytes` and `path` in each row (or a column that Hugging Face's description
in the schema calls `Audio`).  Texts are in the columns that `audiofolder` reads, or in those that
`columns` names; class numbers get their names from Hugging Face's description (`ClassLabel`).  The
audio is not read here, only the other columns.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import glob, has_magic
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BeforeValidator, Field

from common.config import Section
from common.errors import AttuneError, one_line
from common.parquet_values import Value, content_hash, open_parquet, without_nan
from common.schema import Record
from common.storage import open_store
from common.uris import remote_uri
from pipeline.catalogs.audio_root import AudioRoot
from pipeline.catalogs.base import (
    Catalog,
    CatalogPath,
    Outcome,
    Refusal,
    Split,
    locate,
    refuse,
)
from pipeline.catalogs.merging import Survey, survey
from pipeline.catalogs.values import (
    CAPTION_COLUMN,
    length,
    row_split,
    says_train,
    span,
    split_of,
    text,
    texts_of,
    whole_seconds,
)

_TAGS = ("tags", "keywords", "labels", "label")
_LABEL_NAMES = ("human_labels",)
"""AudioSet's label names; `labels` beside them are the ids of the labels."""
_YOUTUBE = ("youtube_id", "ytid", "video_id")
_YOUTUBE_ID = re.compile(r"[-\w]{11}", re.ASCII)
_SINCE = ("start_time", "start_s", "start_seconds")
"""Beside a YouTube id: where the clip begins in the video."""
_DESCRIPTION = ("title", "artist", "genre", "license")
_ROLES = ("split", "group", *_DESCRIPTION, "duration")
"""Columns that are read by their own names, if the recipe names no others."""
_BATCH = 1024  # rows

Names = Annotated[
    list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
]


class Columns(Section):
    """Columns by what they hold; None or empty: those with the usual names."""

    audio: str | None = None
    text: Names = Field(default_factory=list)
    """Captions; one or several columns."""
    tags: Names = Field(default_factory=list)
    split: str | None = None
    group: str | None = None
    license: str | None = None
    title: str | None = None
    start: str | None = None
    """Start and end of the clip in its audio, in seconds.  Never read by their usual names: in
    published datasets `start_time` is a place in a YouTube video, of which the audio is a part."""
    end: str | None = None


@dataclass(frozen=True)
class _Layout:
    """What the columns of a file hold."""

    names: list[str]
    audio: str
    data: str | None
    """The audio's bytes, as Parquet names the column; None if there are only paths."""
    paths: str | None
    """The paths of the audio files, as Parquet names the column."""
    captions: list[str]
    tags: dict[str, str]
    """As `texts_of` takes them."""
    roles: dict[str, str]
    """The columns of `split`, `group`, ..."""
    classes: dict[str, list[str]]
    """The names of classes, for columns that hold their numbers."""

    @property
    def read(self) -> list[str]:
        """The columns that are read for the plan."""
        found = dict.fromkeys([*self.captions, *self.tags, *self.roles.values()])
        return [*found, *([self.paths] if self.paths else [])]

    def values(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row's values, with the names of classes.

        Raises:
            ValueError: a class has no name.
        """
        return {
            column: _class_name(value, self.classes[column], column)
            if column in self.classes
            else value
            for column, value in row.items()
        }

    def path(self, row: Mapping[str, Any]) -> str:
        """The path of a row's audio file, as its publisher had it; empty if there is none."""
        value = row.get(self.audio)
        path = value.get("path") if isinstance(value, Mapping) else value
        return path.strip() if isinstance(path, str) else ""


class Parquet(Catalog):
    dataset: Literal["parquet"] = "parquet"
    files: CatalogPath
    """A file, a pattern (`data/*.parquet`) or a folder; also at `s3://`, where `*` matches `/`."""
    columns: Columns = Field(default_factory=Columns)
    split: Split = "train"
    """For rows without a column `split`, in files whose name and folder do not say a split."""

    def fetched(self) -> Self:
        return self  # the files are read in parts, where they are

    def sources(self) -> list[Path]:
        return []

    def fingerprints(self) -> dict[str, str]:
        return {file: content_hash(file) for file in self._files()[1]}

    def read(self) -> Iterator[Outcome]:
        folder, files = self._files()
        layouts = {file: self._layout(file) for file in files}
        found = survey(row for file, layout in layouts.items() for row in _first_look(file, layout))
        for file, layout in layouts.items():
            yield from self._outcomes(file, posixpath.relpath(file, folder), layout, found)

    def unread_columns(self) -> list[str]:
        found: dict[str, None] = {}
        for layout in map(self._layout, self._files()[1]):
            found |= dict.fromkeys(layout.names)
            for name in (*layout.read, layout.audio):
                found.pop(name, None)
        return list(found)

    def text_columns(self) -> str:
        names = self._layout(self._files()[1][0]).names
        return (
            f"columns: {one_line(', '.join(names))}; text is read from text, caption, description "
            f"(also caption_1, ...), {', '.join((*_LABEL_NAMES, *_TAGS))}; for another column, add "
            "columns: {text: NAME} or {tags: NAME} to the catalog"
        )

    def _files(self) -> tuple[str, list[str]]:
        """The folder above all files, as far as the recipe names it, and the files."""
        uri = remote_uri(self.files)
        given = uri or os.path.abspath(self.files)
        if os.path.isfile(given) or (given.endswith(".parquet") and not has_magic(given)):
            return posixpath.dirname(given), [given]
        pattern = given if has_magic(given) else f"{given}/**/*.parquet"
        folder = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0]
        if uri:
            keys = (f"{folder}/{key}" for key, _ in open_store(folder).list())
            found = [key for key in keys if fnmatchcase(key, pattern.replace("**/", "*"))]
        else:
            found = sorted(filter(os.path.isfile, glob(pattern, recursive=True)))
        if not found:
            raise AttuneError(f"{given}: no such Parquet file, folder or pattern")
        return folder, found

    def _layout(self, file: str) -> _Layout:
        """What the columns of a file hold, by the recipe, the schema and its description.

        Raises:
            AttuneError: the file cannot be read, has no audio, or lacks a column of the recipe.
        """
        with open_parquet(file) as parquet:
            schema = parquet.schema_arrow
        features = _features(schema)
        for role, wanted in self.columns.model_dump().items():
            for name in [wanted] if isinstance(wanted, str) else wanted or ():
                if name not in schema.names:
                    raise AttuneError(
                        f"{file}: no column {name!r}, which the recipe names (columns.{role}); it "
                        f"has {one_line(', '.join(schema.names))}"
                    )
        audio = self.columns.audio or _audio_column(file, schema, features)
        data, paths = _parts(schema.field(audio))
        if not data and not paths:
            raise _no_audio(file, schema)
        own = self.columns
        captions = own.text or [n for n in schema.names if CAPTION_COLUMN.fullmatch(n)]
        known = _LABEL_NAMES if set(_LABEL_NAMES) & {*schema.names} else _TAGS
        tags = own.tags or [name for name in known if name in schema.names]
        usual = {role: (role,) for role in _ROLES} | {"youtube": _YOUTUBE, "since": _SINCE}
        roles = {
            role: name
            for role in (*usual, "start", "end")
            for name in [getattr(own, role, None) or _first(usual.get(role, ()), schema.names)]
            if name
        }
        classes = {name: _classes(feature) for name, feature in features.items()}
        return _Layout(
            schema.names, audio, data, paths, captions, dict.fromkeys(tags, ";"), roles,
            {name: names for name, names in classes.items() if names},
        )  # fmt: skip

    def _outcomes(self, file: str, name: str, layout: _Layout, found: Survey) -> Iterator[Outcome]:
        """The outcomes of a file's rows; native ids of rows without a path begin with `name`."""
        split = _split_of_file(file, found.has_train) or str(self.split)
        real = file if remote_uri(file) else os.path.realpath(file)
        root: AudioRoot | None = None
        number = 0
        with open_parquet(file) as parquet:
            for group in range(parquet.num_row_groups):
                lacking = _without_bytes(parquet, group, layout.data)
                for row, values in enumerate(_group_rows(parquet, group, layout.read)):
                    number += 1
                    path = layout.path(values)
                    native_id = f"{name}:{number}"
                    if path and not found.has_several(path, {}):
                        native_id = path
                    record = self._record(f"{file}:{number}", native_id, split, layout, values,
                                          path if row in lacking else native_id, found)  # fmt: skip
                    if row not in lacking:
                        record.real_uri = str(Value(group, row, layout.audio, real))
                        if isinstance(record, Record):
                            record.audio_uri = str(Value(group, row, layout.audio, file))
                        yield record
                    elif path:
                        root = root or self.open_audio(posixpath.dirname(file))
                        record.real_uri = root.real_path(path)  # a refused clip is still held out
                        if isinstance(record, Record):
                            yield locate(record, root, path)
                        else:
                            yield record
                    elif isinstance(record, Record):
                        yield refuse(record, "catalog", "missing_audio", "no bytes and no path")
                    else:
                        yield record

    def _record(
        self, source: str, native_id: str, split: str, layout: _Layout,
        row: Mapping[str, Any], sound: str, found: Survey,
    ) -> Record | Refusal:  # fmt: skip
        """A row's clip, its audio not located yet.

        Args:
            sound: names the sound for the group: clips with the same one share a group.
        """
        group = f"{self.label}:{sound}"
        youtube, clip = _youtube(row, layout.roles)
        try:
            values = layout.values(row)
            role = {role: values.get(column) for role, column in layout.roles.items()}
            group = text(role, "group") or youtube or group
            split = row_split(role, split, beside_train=found.has_train)
            start, end = span({name: role[name] for name in ("start", "end") if name in role})
            texts = texts_of(values, layout.captions, layout.tags)
            more = {name: text(role, name) for name in _DESCRIPTION}
            if texts.problem:
                raise ValueError(texts.problem)
        except ValueError as error:
            return self.malformed(
                source, native_id, str(error), group_id=youtube or group, split=split, clip=clip
            )
        return self.record(
            source,
            native_id,
            group,
            split=split,
            start_s=start,
            end_s=end,
            tags=texts.tags,
            captions=texts.captions,
            stated_s=length(role.get("duration")) if end is None else end - (start or 0),
            clip=clip,
            also=youtube if youtube != group else "",
            **more,
        )


def _first_look(file: str, layout: _Layout) -> Iterator[tuple[str, dict[str, Any]]]:
    """For `survey`: the path and the split of each row."""
    split = layout.roles.get("split")
    columns = [name for name in (layout.paths, split) if name]
    yield file, {"split": next(filter(says_train, _words(file)), None)}
    with open_parquet(file) as parquet:
        for group in range(parquet.num_row_groups if columns else 0):
            for number, row in enumerate(_group_rows(parquet, group, columns)):
                said = row.get(split) if split else None
                if isinstance(said, int) and split in layout.classes:
                    said = dict(enumerate(layout.classes[split])).get(said)
                yield layout.path(row) or f"{file}:{group}:{number}", {"split": said}


def _group_rows(
    parquet: pq.ParquetFile, group: int, columns: list[str]
) -> Iterator[dict[str, Any]]:
    if not columns:
        yield from ({} for _ in range(parquet.metadata.row_group(group).num_rows))
        return
    for batch in parquet.iter_batches(_BATCH, [group], columns, use_threads=False):
        yield from map(without_nan, batch.to_pylist())


def _without_bytes(parquet: pq.ParquetFile, group: int, column: str | None) -> Collection[int]:
    """The rows of a row group without bytes.

    The statistics say whether there are any.  Only if some rows have bytes and some have none, the
    bytes are read.  Without statistics, all rows count as having bytes.
    """
    metadata = parquet.metadata.row_group(group)
    chunks = map(metadata.column, range(metadata.num_columns))
    chunk = next((chunk for chunk in chunks if chunk.path_in_schema == column), None)
    if chunk is None:
        return range(metadata.num_rows)
    statistics = chunk.statistics
    nulls = statistics.null_count if statistics and statistics.has_null_count else 0
    if nulls in (0, metadata.num_rows):
        return range(nulls)
    rows = _group_rows(parquet, group, [chunk.path_in_schema])
    values = (next(iter(row.values())) for row in rows)
    data = (value.get("bytes") if isinstance(value, Mapping) else value for value in values)
    return {row for row, one in enumerate(data) if one is None}


def _features(schema: pa.Schema) -> dict[str, Any]:
    """Hugging Face's description of the columns; empty if there is none."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _kind(feature: Any) -> str:
    return str(feature.get("_type", "")) if isinstance(feature, dict) else ""


def _classes(feature: Any) -> list[str]:
    """The class names of a column or of the items of its lists; empty if it holds no classes."""
    if isinstance(feature, list):
        return _classes(feature[0]) if feature else []
    if isinstance(feature, dict) and "feature" in feature:
        return _classes(feature["feature"])
    return list(map(str, feature.get("names") or ())) if _kind(feature) == "ClassLabel" else []


def _class_name(value: Any, names: list[str], column: str) -> Any:
    """The name of a class, with blanks for `_`; -1 is no class.

    Raises:
        ValueError: there is no such class.
    """
    if isinstance(value, list):
        return [_class_name(item, names, column) for item in value]
    if not isinstance(value, int) or value == -1:
        return None if value == -1 else value
    if not 0 <= value < len(names):
        raise ValueError(f"{column}: class {value}, but there are names for 0 to {len(names) - 1}")
    return names[value].replace("_", " ")


def _parts(field: pa.Field) -> tuple[str | None, str | None]:
    """The columns of the bytes and of the paths in an audio column, as Parquet names them."""
    data = path = field
    if pa.types.is_struct(field.type):
        inside = {one.name: one for one in field.flatten()}
        data, path = (inside.get(f"{field.name}.{part}") for part in ("bytes", "path"))
    return (
        data.name if data is not None and _is_bytes(data.type) else None,
        path.name if path is not None and _is_text(path.type) else None,
    )


def _is_bytes(type_: pa.DataType) -> bool:
    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_))


def _is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))


def _audio_column(file: str, schema: pa.Schema, features: Mapping[str, Any]) -> str:
    """The one column of audio.

    Raises:
        AttuneError: there is none, or several.
    """
    described = [name for name in schema.names if _kind(features.get(name)) == "Audio"]
    found = described or [
        field.name
        for field in schema
        # Hugging Face's images are the same struct.
        if pa.types.is_struct(field.type) and _parts(field)[0]
        and _kind(features.get(field.name)) in ("", "Audio")
    ]  # fmt: skip
    if not found:
        raise _no_audio(file, schema)
    if len(found) > 1:
        raise AttuneError(
            f"{file}: {len(found)} columns of audio ({one_line(', '.join(found))}); say which: add "
            f"columns: {{audio: {found[0]}}} to the catalog"
        )
    return found[0]


def _no_audio(file: str, schema: pa.Schema) -> AttuneError:
    return AttuneError(
        f"{file}: no column of audio; expected a struct of bytes and path, as Hugging Face exports "
        f"audio, found {one_line(', '.join(f'{field.name} ({field.type})' for field in schema))}; "
        "if one of these holds audio files, add columns: {audio: NAME} to the catalog"
    )


def _words(file: str) -> list[str]:
    """The words in a file's name, and the last one in the name of its folder (`bal_train`)."""
    folder, name = posixpath.split(file)
    words = re.compile("[A-Za-z]+")
    return [*words.findall(name), *words.findall(posixpath.basename(folder))[-1:]]


def _split_of_file(file: str, has_train: bool) -> str | None:
    said = (split_of(word, beside_train=has_train) for word in _words(file))
    return next(filter(None, said), None)


def _youtube(row: Mapping[str, Any], roles: Mapping[str, str]) -> tuple[str, str]:
    """Group and clip of a row with a YouTube id; empty texts if there is none."""
    found = row.get(roles.get("youtube", ""))
    if not isinstance(found, str) or not _YOUTUBE_ID.fullmatch(found):
        return "", ""
    since = whole_seconds(row.get(roles.get("since", "")))
    return f"youtube:{found}", "" if since is None else f"youtube:{found}@{since}"


def _first(wanted: Collection[str], names: list[str]) -> str | None:
    return next((name for name in wanted if name in names), None)
