"""Sets of clips to measure: a folder, a split of shards, or a benchmark's list with its audio."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from common.audio import AUDIO_EXTENSIONS, AudioError, Wave, resample
from common.errors import AttuneError
from common.loudness import at_loudness
from common.shards import ShardDataset
from common.uris import read_source
from training.evaluation.config import Captions, Preset


@dataclass(frozen=True)
class SetClip:
    """One clip of a set, not read yet."""

    name: str
    """Of its own in the set."""
    uri: str
    start_s: float | None = None
    end_s: float | None = None
    prompts: tuple[str, ...] = ()
    """What a model may be asked for, each a clip of its own."""
    normalized: bool = False
    """Prompts are in training form."""
    captions: tuple[str, ...] = ()
    """As people wrote them, where prompts were made of them."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Its sidecar: how it was made."""
    normalized_prompt: str | None = None
    """Its prompt in training form, where a sidecar tells both."""

    @property
    def prompt(self) -> str | None:
        """What a model is asked for."""
        return self.prompts[0] if self.prompts else None

    @property
    def text(self) -> str | None:
        """The same as a person wrote it, where that is known: what CLAP is to hear in the clip."""
        return _text(self.facts, "caption") or self.prompt


@dataclass(frozen=True)
class ClipSet:
    """Clips, and what is to be told of where they come from."""

    clips: list[SetClip]
    source: str
    missing: tuple[str, ...] = ()
    """Clips that a list names and the folder does not have."""


def read_folder(folder: Path) -> ClipSet:
    """Every audio file below a folder; a `NAME.json` beside one tells its `prompt`, `seed`, ...

    Raises:
        AttuneError: no such folder, no audio in it, or a sidecar that is no JSON object.
    """
    if not folder.is_dir():
        raise AttuneError(f"{folder}: no such folder of clips")
    found = sorted(p for p in folder.rglob("*") if _is_audio(p) and p.is_file())
    if not found:
        raise AttuneError(f"{folder}: no audio files there ({', '.join(sorted(AUDIO_EXTENSIONS))})")
    clips = []
    for path in found:
        facts = _sidecar(path.with_suffix(".json"))
        normalized = _text(facts, "normalized_prompt")
        prompt = _text(facts, "prompt") or normalized
        name, prompts = path.relative_to(folder).as_posix(), (prompt,) if prompt else ()
        clips.append(
            SetClip(name, str(path), prompts=prompts, facts=facts, normalized_prompt=normalized)
        )
    return ClipSet(clips, str(folder))


def read_shards(data_dir: str, split: str, datasets: Sequence[str] = ()) -> ClipSet:
    """The source audio of a split of finished shards.

    Args:
        datasets: those of them alone; none for all.

    Raises:
        AttuneError: no shards, or none of that split or of one of these datasets.
    """
    manifest = ShardDataset.open(data_dir).manifest
    rows = manifest.filter(pc.equal(manifest["split"], split))
    if not len(rows):
        found = sorted({str(name) for name in manifest["split"].unique().to_pylist()})
        raise AttuneError(f"{data_dir}: no clips in split {split!r}; there is {', '.join(found)}")
    there = sorted({str(name) for name in rows["dataset"].unique().to_pylist()})
    if lacking := [name for name in datasets if name not in there]:
        raise AttuneError(
            f"{data_dir}: no clips of dataset {lacking[0]!r} in split {split!r}; "
            f"there is {', '.join(there)}"
        )
    if datasets:
        rows = rows.filter(pc.is_in(rows["dataset"], pa.array(datasets, pa.string())))
    columns = ["sample_id", "audio_uri", "start_s", "end_s", "prompts", "captions"]
    clips = [
        SetClip(
            row["sample_id"], row["audio_uri"] or "", row["start_s"], row["end_s"],
            tuple(row["prompts"] or ()), True, tuple(row["captions"] or ()),
        )
        for row in rows.select(columns).to_pylist()
    ]  # fmt: skip
    return ClipSet(clips, f"{data_dir}, split {split} of {', '.join(datasets or there)}")


def read_reference(spec: str, split: str) -> ClipSet:
    """What `--reference` names: shards where there is a manifest or an address, else a folder."""
    if "://" in spec or (Path(spec) / "manifest.parquet").is_file():
        return read_shards(spec, split)
    return read_folder(Path(spec))


def read_preset(preset: Preset, listed: Path, audio: Path, captions: Captions) -> ClipSet:
    """A benchmark's clips: what its list names, where the folder has audio for it.

    `audiocaps`: test.csv, five rows per clip.  `captions` says which one a clip is prompted with:
    the `first` in the list, one that is a function of the clip's id (`draw`), or `all`, each making
    a clip of its own (five generated clips per real one).
    `musiccaps`: musiccaps-public.csv without its genre-balanced thousand: the unbalanced subset,
    which MusicGen reports on.  Audio is `ID_START.*`, `ID.*` or `YID.*`, holding the clip alone.

    Raises:
        AttuneError: the list is not that benchmark's, or nothing of it is in the folder.
    """
    columns = {
        "audiocaps": ("youtube_id", "start_time", "caption"),
        "musiccaps": ("ytid", "start_s", "caption", "is_balanced_subset"),
    }[preset]
    grouped: dict[str, tuple[str, list[str]]] = {}
    for row in _rows(listed, columns):
        if preset == "musiccaps" and row["is_balanced_subset"].strip().lower() == "true":
            continue
        start = int(float(row[columns[1]] or 0))
        grouped.setdefault(f"{row[columns[0]]}_{start}", (row[columns[0]], []))[1].append(
            row["caption"]
        )
    if not audio.is_dir():
        raise AttuneError(f"{audio}: no such folder; --reference is where {preset}'s audio lies")
    files = {p.stem: p for p in sorted(audio.rglob("*")) if _is_audio(p)}
    clips, missing = [], []
    for name, (youtube_id, texts) in grouped.items():
        path = next((files[s] for s in (name, youtube_id, f"Y{youtube_id}") if s in files), None)
        if path is None:
            missing.append(name)
            continue
        if captions == "draw":
            digest = hashlib.blake2b(name.encode(), digest_size=4).digest()
            texts = [texts[int.from_bytes(digest, "little") % len(texts)]]
        clips.append(SetClip(name, str(path), prompts=tuple(texts)))
    if not clips:
        raise AttuneError(f"{audio}: holds none of the {len(grouped)} clips that {listed} names")
    return ClipSet(clips, f"{preset}: {listed}, audio in {audio}", tuple(missing))


def load_clip(clip: SetClip, loudness: float | None) -> tuple[Wave, int]:
    """A clip as mono, at its own rate, at an integrated loudness if one is given.

    Raises:
        AudioError: it cannot be used; says why.
        AttuneError: the disk or the store failed.
    """
    wave, rate = read_source(clip.uri, clip.start_s, clip.end_s)
    if not bool((abs(wave) < float("inf")).all()):
        raise AudioError("non_finite", clip.uri)
    if loudness is not None:
        wave = at_loudness(wave, rate, loudness)
    return wave, rate


class Rates:
    """A clip at the rates that backbones ask for, each made once."""

    def __init__(self, wave: Wave, sample_rate: int) -> None:
        self.rate = sample_rate
        """Its own, in Hz."""
        self._source = wave, sample_rate
        self._made: dict[int, Wave] = {}

    def at(self, rate: int) -> Wave:
        """Waveform float32 [S] at a rate in Hz, S > 0."""
        if rate not in self._made:
            wave = resample(*self._source, rate)
            self._made[rate] = wave if len(wave) else self._source[0][:1]
        return self._made[rate]


def pair(
    clips: Sequence[SetClip], references: Sequence[SetClip], unusable: Container[str] = ()
) -> dict[str, SetClip]:
    """The real clip that each clip answers to: {name: reference}.

    The one that its sidecar names as `reference`, and no other; where it names none, the one of its
    own name (without ending); else the only one that has its prompt.  Clips for which there is
    none, or more, have no pair.

    Args:
        references: all of them: one that cannot be read has its prompt all the same.
        unusable: names of those that cannot be read; whoever answers to one has no pair.
    """
    names = {_stem(r.name): r for r in references}
    prompts: dict[str, list[SetClip]] = {}
    for reference in references:
        for prompt in _said(reference):
            prompts.setdefault(prompt, []).append(reference)
    pairs = {}
    for clip in clips:
        told = clip.facts.get("reference")
        found = names.get(_stem(clip.name if told is None else str(told)))
        if found is None and told is None:
            alike = {r.name: r for p in _said(clip) for r in prompts.get(p, ())}
            found = next(iter(alike.values())) if len(alike) == 1 else None
        if found is not None and found.name not in unusable:
            pairs[clip.name] = found
    return pairs


def _said(clip: SetClip) -> set[str]:
    return {prompt for prompt in (*clip.prompts, clip.normalized_prompt) if prompt}


def cluster(clip: SetClip, real: SetClip | None) -> str:
    """Whom a clip shares its luck with: those of one real clip are hard or easy together.

    Args:
        real: the one that it answers to; without one, clips of one prompt go together.
    """
    about = clip.facts.get("reference") if real is None else real.name
    if about is not None:
        return json.dumps(["real", _stem(str(about))])
    return json.dumps(["prompt", clip.prompt] if clip.prompt is not None else ["clip", clip.name])


def key(clip: SetClip, with_reference: bool = True) -> str:
    """What makes two models' clips comparable: prompt and seed, else the name.

    Args:
        with_reference: and the real clip that it answers to.
    """
    if clip.prompt is not None and "seed" in clip.facts:
        about = [clip.prompt, clip.facts["seed"]]
        if with_reference:
            about.append(clip.facts.get("reference"))
        return json.dumps(about, ensure_ascii=False)
    return _stem(clip.name)


def shuffled(clips: Sequence[SetClip], with_reference: bool = True) -> list[SetClip]:
    """In an order that has nothing to do with their content, and is the same for every model.

    Args:
        with_reference: as in `key`: models are ordered alike by the same kind of key alone.
    """

    def place(clip: SetClip) -> bytes:
        return hashlib.blake2b(key(clip, with_reference).encode(), digest_size=8).digest()

    return sorted(clips, key=place)


def _stem(name: str) -> str:
    return name[: -len(Path(name).suffix)] if _is_audio(Path(name)) else name


def _is_audio(path: Path) -> bool:
    return path.suffix.lower() in AUDIO_EXTENSIONS


def _text(facts: dict[str, Any], name: str) -> str | None:
    found = facts.get(name)
    return found if isinstance(found, str) and found else None


def _sidecar(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AttuneError(f"{path}: not JSON: {error}; it should tell a clip's prompt") from error
    if not isinstance(facts, dict):
        raise AttuneError(f"{path}: expected an object with a clip's prompt and seed")
    return facts


def _rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            lacking = [name for name in columns if name not in (reader.fieldnames or ())]
            if lacking:
                raise AttuneError(f"{path}: no column {lacking[0]} in its header")
            rows = []
            for row in reader:
                try:
                    int(float(row[columns[1]] or 0))
                    if not row[columns[0]] or not (row["caption"] or "").strip():
                        raise ValueError
                except (TypeError, ValueError, OverflowError):
                    at = f"{path}, line {reader.line_num}"
                    raise AttuneError(f"{at}: expected {', '.join(columns)}") from None
                rows.append({name: row[name] or "" for name in columns})
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AttuneError(f"{path}: cannot be read as a list of captions: {error}") from error
    return rows
