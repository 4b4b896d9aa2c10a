"""Prompts that were made before, kept between commands: spaCy takes a millisecond for a caption.

`prompts/KEY.parquet` in the cache folder (`~/.cache/attune`) has the columns `text` and `prompt`.
KEY is a hash of all that a prompt depends on beside its text (see `_path`), so no file is ever out
of date. A prompt does not depend on the texts that are normalized together with it: the 76,649
different captions of AudioCaps and Clotho gave equal prompts in four orders, in chunks of 7, 300
and 2,048.

A file is replaced as a whole. If two processes add to it at once, the last one wins, and the texts
of the other are normalized again when they are needed. A damaged file counts as none.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import common.lemmas
import common.letters
import common.prompts
import common.spacy_words
import common.wordnet
import common.words
from common.prompts import PromptForm, normalizer_id
from common.uris import cache_folder

MOST_TEXTS = 1_000_000
"""Number of texts that a file keeps (about 100 MB in memory); the last ones that were added."""
MOST_FILES = 8
"""Number of files that the folder keeps, the last used ones: one for each KEY."""
_COLUMNS = pa.schema([("text", pa.string()), ("prompt", pa.string())])


def known_prompts(texts: Collection[str], form: PromptForm) -> dict[str, str]:
    """The prompts of those texts that the cache has.

    Raises:
        AttuneError: the policy's data (spaCy's model, NLTK's data) is not installed.
    """
    # `plain` is faster than reading a file.
    if form.policy == "plain" or not texts:
        return {}
    wanted = set(texts)
    return {text: prompt for text, prompt in _read(form) if text in wanted}


def keep_prompts(made: Mapping[str, str], form: PromptForm) -> None:
    """Add prompts to the cache, if the disk allows.

    Raises:
        AttuneError: as `known_prompts`.
    """
    if form.policy == "plain" or not made:
        return
    others = (pair for pair in _read(form) if pair[0] not in made)
    texts, prompts = zip(*islice(chain(made.items(), others), MOST_TEXTS), strict=True)
    table = pa.table([texts, prompts], schema=_COLUMNS)
    with suppress(OSError, RuntimeError):  # a full or read-only disk, no home folder
        path = _path(form)
        # A private folder: whoever can write there could replace prompts.
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            partial = Path(scratch) / path.name
            pq.write_table(table, partial, compression="zstd", write_page_checksum=True)
            os.replace(partial, path)
        _tidy(path.parent)


_SOURCES = (
    common.prompts,
    common.words,
    common.spacy_words,
    common.wordnet,
    common.lemmas,
    common.letters,
)
"""The modules that decide a prompt."""


def _path(form: PromptForm) -> Path:
    """The file for a form of prompts, this code, and the versions of what it uses."""
    digest = hashlib.blake2b(digest_size=12)
    python = [*sys.version_info[:2], unicodedata.unidata_version]
    key = [asdict(form), normalizer_id(form.policy), python]
    digest.update(json.dumps(key, sort_keys=True).encode())
    for module in _SOURCES:
        digest.update(Path(str(module.__file__)).read_bytes())
    return cache_folder() / "prompts" / f"{digest.hexdigest()}.parquet"


def _read(form: PromptForm) -> Iterator[tuple[str, str]]:
    """Texts and prompts of the file, as far as it is intact."""
    with suppress(OSError, RuntimeError, ValueError, pa.ArrowException):
        path = _path(form)
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            os.utime(path)  # for `_tidy`
            if not file.schema_arrow.equals(_COLUMNS):  # the schema has no checksum
                return
            for batch in file.iter_batches():
                yield from zip(batch["text"].to_pylist(), batch["prompt"].to_pylist(), strict=True)


def _tidy(folder: Path) -> None:
    """Remove all but the last used files; also what killed processes left."""
    for old in sorted(folder.iterdir(), key=lambda path: -path.stat().st_mtime)[MOST_FILES:]:
        shutil.rmtree(old) if old.is_dir() else old.unlink()
