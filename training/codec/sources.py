"""Which audio a codec learns from: folders, patterns of files, and the clips of a plan.

A plan is what the pipeline froze (`DATA_DIR/plan/plan.parquet`).  Its `audio_uri`, `start_s`,
`end_s` and `split` are read, as `common/schema.py` has them, and nothing else.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.audio import AUDIO_EXTENSIONS
from common.errors import AttuneError
from common.schema import PLAN
from common.storage import open_store

SOURCES = pa.schema([PLAN.field(name) for name in ("audio_uri", "start_s", "end_s")])
"""A clip: a path or `s3://bucket/key`, and the part of it in seconds, null for start or end."""


def audio_sources(entries: Sequence[str], split: str) -> pa.Table:
    """The clips that `codec_training.audio` or `.validation` names, as `SOURCES`.

    Args:
        entries: folders, searched with everything below them; patterns like `audio/[1-4]-*`; plans.
        split: of a plan's clips.

    Raises:
        AttuneError: an entry that is none of these, or holds no audio.
    """
    tables = []
    for entry in entries:
        table = _planned(entry, split) if entry.endswith(".parquet") else _files(entry)
        if not len(table):
            what = f"no clips of split {split}" if entry.endswith(".parquet") else "no audio files"
            raise AttuneError(f"codec training: {entry}: {what}, so no usable audio")
        tables.append(table)
    return pa.concat_tables(tables).combine_chunks()


def _files(entry: str) -> pa.Table:
    found: Iterable[Path]
    if Path(entry).is_dir():
        found = Path(entry).rglob("*")
    elif glob.has_magic(entry):
        found = map(Path, glob.iglob(entry))
    elif Path(entry).is_file():
        raise AttuneError(
            f"codec training: {entry}: is a file; name a folder of audio, a pattern of files "
            "(audio/*.wav) or a plan (plan.parquet)"
        )
    else:
        raise AttuneError(f"codec training: {entry}: no such folder of audio")
    names = sorted(str(path) for path in found if path.suffix.lower() in AUDIO_EXTENSIONS)
    nothing = pa.nulls(len(names), pa.float64())
    return pa.table([pa.array(names, pa.string()), nothing, nothing], schema=SOURCES)


def _planned(entry: str, split: str) -> pa.Table:
    names = [*SOURCES.names, "split"]
    try:
        if "://" in entry:
            folder, _, name = entry.rpartition("/")
            with open_store(folder).open(name) as file:
                table = _columns(pq.ParquetFile(file), names)
        else:
            table = _columns(pq.ParquetFile(entry), names)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise AttuneError(
            f"codec training: {entry}: cannot be read as a plan ({reason}); name the plan.parquet "
            "that `python -m pipeline plan` writes"
        ) from error
    if table is None:
        raise AttuneError(
            f"codec training: {entry}: is no plan; expected columns {', '.join(names)} as "
            "`python -m pipeline plan` writes them"
        )
    return table.filter(pc.equal(table["split"], split)).select(SOURCES.names)


def _columns(file: pq.ParquetFile, names: Sequence[str]) -> pa.Table | None:
    schema = file.schema_arrow
    if any(name not in schema.names or schema.field(name).type != PLAN.field(name).type
           for name in names):  # fmt: skip
        return None
    return file.read(columns=list(names))
