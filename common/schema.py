"""Records, and the Arrow schemas of every table that the pipeline writes.

A *record* is one clip as its catalog describes it. The plan adds the prompts and the place (shard,
position); the manifest adds the results of encoding (frames, byte span, provenance). All times are
seconds, all byte spans are of the shard's tar file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

SPLITS = ("train", "valid", "test")

RECORD = pa.schema(
    [
        ("sample_id", pa.string()),
        ("dataset", pa.string()),
        ("native_id", pa.string()),
        ("group_id", pa.string()),
        ("split", pa.string()),
        ("audio_uri", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("tags", pa.list_(pa.string())),
        ("captions", pa.list_(pa.string())),
        ("title", pa.string()),
        ("artist", pa.string()),
        ("genre", pa.string()),
        ("bpm", pa.float64()),
        ("license", pa.string()),
        ("license_url", pa.string()),
        ("attribution", pa.string()),
        ("source", pa.string()),
    ]
)

PLAN = pa.schema(
    [
        *RECORD,
        pa.field("prompts", pa.list_(pa.string())),
        pa.field("shard", pa.int32()),
        pa.field("position", pa.int32()),
    ]
)

_REJECT = ("sample_id", "dataset", "native_id", "source", "stage", "reason", "detail", "raw")
REJECTS = pa.schema(dict.fromkeys(_REJECT, pa.string()))

MANIFEST = pa.schema(
    [
        *RECORD,
        pa.field("prompts", pa.list_(pa.string())),
        pa.field("prompt_tokens", pa.list_(pa.int32())),
        pa.field("shard", pa.int32()),
        pa.field("position", pa.int32()),
        pa.field("shard_key", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("length", pa.int64()),
        pa.field("frames", pa.int32()),
        pa.field("duration_s", pa.float64()),
        pa.field("codec_id", pa.string()),
        pa.field("text_encoder_id", pa.string()),
        pa.field("source_sample_rate", pa.int32()),
        pa.field("source_sha256", pa.string()),
    ]
)


@dataclass(slots=True)
class Record:
    """One clip, as its catalog describes it; the fields of `RECORD`.

    `start_s`/`end_s` are the part of `audio_uri` to cut, None for the file's own start or end.
    Clips with the same `group_id` (`youtube:ID`, `freesound:ID`, `artist:NAME`) must be in the same
    split, in all datasets. `source` is `FILE:LINE` of the catalog row.
    """

    dataset: str
    native_id: str
    group_id: str
    split: str
    audio_uri: str
    source: str
    start_s: float | None = None
    end_s: float | None = None
    tags: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    title: str | None = None
    artist: str | None = None
    genre: str | None = None
    bpm: float | None = None
    license: str | None = None
    license_url: str | None = None
    attribution: str | None = None
    sample_id: str = ""
    clip: str = ""
    """Identifies this piece of sound in all datasets: `youtube:ID@START` (whole seconds) or
    `freesound:ID`; empty if it is not compared. Only for planning, not in `RECORD`."""
    also: str = ""
    """Another name of the group, by which lists that know less name the clip. Only for planning."""
    real_uri: str = ""
    """The file behind `audio_uri`, if links lead to it or `audio_uri` is only a name; it has no
    extension if the file was not looked for. Only for planning."""
    stated_s: float | None = None
    """Length in seconds as the catalog states it. Only for planning, not in `RECORD`."""

    def __post_init__(self) -> None:
        if not self.sample_id:
            self.sample_id = sample_id(self.dataset, self.native_id, self.start_s, self.end_s)

    def as_row(self) -> dict[str, Any]:
        """The fields of `RECORD`."""
        return {name: getattr(self, name) for name in RECORD.names}


def sample_id(dataset: str, native_id: str, start_s: float | None, end_s: float | None) -> str:
    """32 hex digits (blake2b-128) that identify a sample; without dots, so safe as a tar key."""
    span = [None if seconds is None else round(seconds * 1000) for seconds in (start_s, end_s)]
    key = json.dumps([dataset, native_id, *span], ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(key.encode(), digest_size=16).hexdigest()


def sample_digests(dataset: str, native_ids: pa.Array) -> pa.Array:
    """`sample_id` of many whole files of a dataset: string array to binary(16) array."""
    before, after = json.dumps([dataset], separators=(",", ":"))[:-1] + ',"', '",null,null]'
    keys = pc.binary_join_element_wise(before, native_ids, after, "").cast(pa.binary())
    blake2b = hashlib.blake2b
    digests = [blake2b(key, digest_size=16).digest() for key in keys.to_pylist()]
    # Names that JSON escapes are hashed one by one.
    escaped = pc.match_substring_regex(native_ids, r"[^ !#-\[\]-~]")
    for i in pc.indices_nonzero(escaped).to_pylist():
        digests[i] = bytes.fromhex(sample_id(dataset, native_ids[i].as_py(), None, None))
    return pa.array(digests, pa.binary(16))
