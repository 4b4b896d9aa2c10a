"""Which audio a codec learns from: folders, patterns of files, and the clips of a plan.

Of the pipeline's plan (`DATA_DIR/plan/plan.parquet`) only the columns `audio_uri`, `start_s`,
`end_s` and `split` are read (`common/schema.py`).
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.audio import AUDIO_EXTENSIONS
from common.errors import AttuneError, one_line
from common.schema import PLAN
from common.storage import open_store

SOURCES = pa.schema([PLAN.field(name) for name in ("audio_uri", "start_s", "end_s")])
"""A clip: a path or `s3://bucket/key`, and the part of it in seconds, null for start or end."""


def audio_sources(entries: Sequence[str], split: str) -> pa.Table:
    """The clips that `codec_training.audio` or `.validation` names, as `SOURCES`.

    Args:
        entries: folders, searched with everything below them; patterns like `audio/[1-4]-*`; plans.
        split: which clips of a plan.

    Raises:
        AttuneError: an entry is none of these, or holds no audio.
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
    if Path(entry).is_dir():
        found = list(Path(entry).rglob("*"))
    elif glob.has_magic(entry):
        found = [Path(path) for path in glob.iglob(entry)]
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
    folder, _, name = entry.rpartition("/")
    try:
        with open_store(folder).open(name) if "://" in entry else open(entry, "rb") as file:
            plan = pq.ParquetFile(file)
            types = dict(zip(plan.schema_arrow.names, plan.schema_arrow.types, strict=True))
            if any(types.get(name) != PLAN.field(name).type for name in names):
                raise AttuneError(
                    f"codec training: {entry}: is no plan; expected columns {', '.join(names)} as "
                    "`python -m pipeline plan` writes them"
                )
            table = plan.read(columns=names)
    except (OSError, pa.ArrowException) as error:
        raise AttuneError(
            f"codec training: {entry}: cannot be read as a plan ({one_line(error)}); name the "
            "plan.parquet that `python -m pipeline plan` writes"
        ) from error
    return table.filter(pc.equal(table["split"], split)).select(SOURCES.names)
