"""Free To Use Sounds: a tree of .wav files; a file's name is its caption.

`Rain_on_Roof-02.wav` -> "Rain on Roof": underscores and hyphens become blanks, and take numbers at
the end are dropped.  The text inside the file (Broadcast Wave `bext` description, iXML note) is a
further caption.  A CSV or JSONL beside the tree (`file_name` and `text`, `caption` or
`description`) replaces all of these captions.  Takes of one recording share a group.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from common.audio import AUDIO_EXTENSIONS
from common.errors import AttuneError
from common.letters import compose
from common.schema import Record
from common.tables import read_table
from pipeline.catalogs.audio_root import AudioRoot
from pipeline.catalogs.base import (
    Catalog,
    CatalogPath,
    Merged,
    Outcome,
    Split,
    absent,
    columns_of,
    locate,
    refuse,
)
from pipeline.catalogs.file_names import is_utf8
from pipeline.catalogs.riff import WavText, read_wav_text
from pipeline.catalogs.values import Texts, texts_of

_CAPTIONS = ("caption", "description", "text")
_TAKE = re.compile(r"(?:[\s_-]+(?:take|tk|version|ver|v|no|#)?[\s_.#-]*\d{1,4})+$", re.IGNORECASE)


class FreeToUse(Catalog):
    dataset: Literal["freetousesounds"] = "freetousesounds"
    root: CatalogPath
    captions: CatalogPath | None = None
    """A CSV, JSONL or Parquet with texts of your own; `file_name` is relative to `root`."""
    split: Split = "train"

    def read(self) -> Iterator[Outcome]:
        """First the linked folders, which are refused, then each file of the tree, in order.  A row
        of the user's own texts is merged into the row of its file."""
        audio = AudioRoot(self.root)
        own, merged = self._own_texts(audio)
        names, leading_out = _walk(self.root)
        for name in leading_out:
            record = self._record(name, os.path.join(self.root, name))
            yield refuse(record, "catalog", "outside_root", f"{name!r} links to outside {audio}")
        for name in names:
            source, texts = own.pop(name, ("", None))
            yield self._outcome(name, texts, audio)
            if source:
                yield Merged(source)
        yield from merged
        for name, (source, _) in own.items():
            detail = absent(audio, name, f"{name!r:.200}")
            yield refuse(self._record(name, source), "catalog", "missing_audio", detail)

    def unread_columns(self) -> list[str]:
        rows = read_table(self.captions, ("file_name",)) if self.captions else ()
        return [name for name in columns_of(rows) if name not in ("file_name", *_CAPTIONS)]

    def _own_texts(self, audio: AudioRoot) -> tuple[dict[str, tuple[str, Texts]], list[Outcome]]:
        """The sources and texts of the user's rows by file name, and the outcomes of the rows that
        are not used."""
        own: dict[str, tuple[str, Texts]] = {}
        others: list[Outcome] = []
        for row in read_table(self.captions, ("file_name",)) if self.captions else ():
            name = row.values.get("file_name")
            problem = row.error
            if not problem and (not isinstance(name, str) or not name):
                problem = f"file_name: expected a file name, found {name!r:.80}"
            try:
                texts = next(
                    filter(None, (texts_of(row.values, (key,)) for key in _CAPTIONS)), None
                )
            except ValueError as error:
                problem = problem or str(error)
            if problem or not isinstance(name, str):
                # The list of clips is the tree: no clip is lost with a row of texts.
                tree = os.path.realpath(self.root)
                others.append(self.malformed(row.source, name, problem, real_uri=tree))
            elif texts is None or texts.problem:
                detail = texts.problem if texts else f"no text in {', '.join(_CAPTIONS)}"
                real = audio.real_path(name)
                others.append(self.malformed(row.source, name, detail, real_uri=real))
            elif (key := os.path.normpath(audio.spelling(name))) in own:
                detail = f"the same file as {own[key][0]}"
                others.append(refuse(self._record(key, row.source), "catalog", "duplicate", detail))
            else:
                own[key] = row.source, texts
        return own, others

    def _record(self, name: str, source: str) -> Record:
        stem = os.path.splitext(name)[0]
        group = f"{self.label}:{_TAKE.sub('', stem)}"
        return self.record(source, name, group, title=os.path.basename(stem))

    def _outcome(self, name: str, own: Texts | None, audio: AudioRoot) -> Outcome:
        path = os.path.join(self.root, name)
        outcome = locate(self._record(name, path), audio, name)
        if isinstance(outcome, Record):
            inside = read_wav_text(Path(path)) or WavText()
            outcome.stated_s = inside.seconds
            texts = [stem_caption(os.path.basename(name)), inside.description, inside.note]
            outcome.captions = list(dict.fromkeys(filter(None, texts)))
            if own:
                outcome.captions, outcome.tags = own.captions, own.tags
        return outcome


def stem_caption(name: str) -> str:
    """The caption in a file name: `Rain_on_Roof-02.wav` -> "Rain on Roof"; empty if no letters."""
    stem = compose(os.path.splitext(name)[0])  # macOS writes decomposed names
    words = " ".join(re.sub(r"[_-]+", " ", _TAKE.sub("", stem)).split())
    return words if re.search(r"[^\W\d]", words) else ""


def _walk(root: Path) -> tuple[list[str], list[str]]:
    """Audio files of the tree, and links to folders outside it; relative paths, sorted.

    A link to a folder inside the tree is ignored: the folder is found in its own place.
    """

    def stop(error: OSError) -> None:
        raise AttuneError(f"{error.filename}: {error.strerror}") from error

    real = os.path.realpath(root)
    names: list[str] = []
    leading_out: list[str] = []
    for folder, folders, files in os.walk(root, onerror=stop):
        folders[:] = [name for name in folders if name != "__MACOSX"]
        paths = [os.path.join(folder, name) for name in folders]
        leading_out += [
            os.path.relpath(path, root)
            for path in paths
            if os.path.islink(path) and os.path.commonpath([os.path.realpath(path), real]) != real
        ]
        names += [
            os.path.relpath(os.path.join(folder, name), root)
            for name in files
            # macOS leaves `._x.wav` beside x.wav on other file systems.
            if os.path.splitext(name)[1].lower() in AUDIO_EXTENSIONS and not name.startswith("._")
        ]
    if not names and not leading_out:
        raise AttuneError(f"{root}: no audio files in it; expected the tree of .wav files")
    for name in (*names, *leading_out):
        if not is_utf8(name):
            shown = os.fsencode(os.path.join(root, name)).decode(errors="replace")
            raise AttuneError(f"{shown}: its name is not UTF-8; rename it (convmv)")
    return sorted(names), sorted(leading_out)
