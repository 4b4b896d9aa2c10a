"""Sets of clips to measure: a folder, a split of shards, or the list of a benchmark."""

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
    """Unique in the set."""
    uri: str
    start_s: float | None = None
    end_s: float | None = None
    prompts: tuple[str, ...] = ()
    """Prompts for a model; each gives a generated clip."""
    normalized: bool = False
    """Whether the prompts are in training form."""
    captions: tuple[str, ...] = ()
    """The captions that the prompts were made of, as people wrote them."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Content of the JSON sidecar: how the clip was made."""
    normalized_prompt: str | None = None
    """The prompt in training form, if the sidecar has both forms."""

    @property
    def prompt(self) -> str | None:
        """The first prompt."""
        return self.prompts[0] if self.prompts else None

    @property
    def text(self) -> str | None:
        """The text for CLAP: the prompt as a person wrote it, if known."""
        return _text(self.facts, "caption") or self.prompt


@dataclass(frozen=True)
class ClipSet:
    """Clips and a description of their source."""

    clips: list[SetClip]
    source: str
    missing: tuple[str, ...] = ()
    """Clips of a benchmark's list without audio in the folder."""


def read_folder(folder: Path) -> ClipSet:
    """List all audio files below a folder; a sidecar `NAME.json` has the `prompt`, `seed`, ...

    Raises:
        AttuneError: no such folder, no audio in it, or a sidecar that is not a JSON object.
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


def rows_of_split(data_dir: str, dataset: ShardDataset, split: str) -> pa.Table:
    """The manifest's rows of a split.

    Raises:
        AttuneError: the split has no clips.
    """
    rows = dataset.manifest.filter(pc.equal(dataset.manifest["split"], split))
    if not len(rows):
        found = ", ".join(sorted(map(str, dataset.manifest["split"].unique().to_pylist())))
        raise AttuneError(f"{data_dir}: no clips in split {split!r}; its splits are {found}")
    return rows


def read_shards(data_dir: str, split: str, datasets: Sequence[str] = ()) -> ClipSet:
    """List the source audio of a split of finished shards.

    Args:
        datasets: only clips of these datasets; all datasets if empty.

    Raises:
        AttuneError: no shards, or no clips of that split or of one of the datasets.
    """
    rows = rows_of_split(data_dir, ShardDataset.open(data_dir), split)
    there = sorted(map(str, rows["dataset"].unique().to_pylist()))
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
    """Read the value of `--reference`: shards (a URI or a folder with a manifest), or a folder."""
    if "://" in spec or (Path(spec) / "manifest.parquet").is_file():
        return read_shards(spec, split)
    return read_folder(Path(spec))


_COLUMNS = {
    "audiocaps": ("youtube_id", "start_time", "caption"),
    "musiccaps": ("ytid", "start_s", "caption", "is_balanced_subset"),
}


def read_preset(preset: Preset, listed: Path, audio: Path, captions: Captions) -> ClipSet:
    """List a benchmark's clips: the clips of its CSV file that have audio in the folder.

    `audiocaps`: test.csv has five rows per clip.  `captions` chooses the prompt: the `first` row,
    a random row that depends only on the clip's id (`draw`), or `all` rows, which give five
    generated clips per real clip.
    `musiccaps`: musiccaps-public.csv without its genre-balanced thousand: the unbalanced subset,
    which MusicGen reports on.
    Audio files are `ID_START.*`, `ID.*` or `YID.*`, and contain only the clip.

    Raises:
        AttuneError: the file is not the benchmark's list, or the folder has none of its clips.
    """
    grouped: dict[str, tuple[str, list[str]]] = {}
    for youtube_id, start, caption, *balanced in _rows(listed, _COLUMNS[preset]):
        if balanced and balanced[0].strip().lower() == "true":
            continue
        name = f"{youtube_id}_{int(float(start or 0))}"
        grouped.setdefault(name, (youtube_id, []))[1].append(caption)
    if not audio.is_dir():
        raise AttuneError(f"{audio}: no such folder; --reference is the folder of {preset}'s audio")
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
        raise AttuneError(f"{audio}: has none of the {len(grouped)} clips that {listed} names")
    return ClipSet(clips, f"{preset}: {listed}, audio in {audio}", tuple(missing))


def load_clip(clip: SetClip, loudness: float | None = None) -> tuple[Wave, int]:
    """Read a clip as mono float32 [S] and its sample rate in Hz.

    Args:
        loudness: integrated loudness of the result, LUFS; None for no change.

    Raises:
        AudioError: the clip cannot be used; the message says why.
        AttuneError: the disk or the store failed.
    """
    wave, rate = read_source(clip.uri, clip.start_s, clip.end_s)
    if not bool((abs(wave) < float("inf")).all()):
        raise AudioError("non_finite", clip.uri)
    if loudness is not None:
        wave = at_loudness(wave, rate, loudness)
    return wave, rate


class Rates:
    """A clip at the sample rates of the backbones; each rate is computed once."""

    def __init__(self, wave: Wave, sample_rate: int) -> None:
        self.rate = sample_rate
        """Original sample rate, Hz."""
        self._wave = wave
        self._made: dict[int, Wave] = {}

    def at(self, rate: int) -> Wave:
        """Waveform float32 [S] at a rate in Hz, S > 0."""
        if rate not in self._made:
            wave = resample(self._wave, self.rate, rate)
            self._made[rate] = wave if len(wave) else self._wave[:1]
        return self._made[rate]


def pair(
    clips: Sequence[SetClip], references: Sequence[SetClip], unusable: Container[str] = ()
) -> dict[str, SetClip]:
    """Find the real clip of each generated clip: {name: reference}.

    If the sidecar has a `reference`, only the real clip of that name counts.  Otherwise it is the
    real clip with the same name (without ending), or the only real clip with the same prompt.
    Clips without such a real clip are not in the result.

    Args:
        references: all real clips, also unreadable ones: their prompts are not unique either.
        unusable: names of unreadable real clips; they are in no pair.
    """
    names = {_stem(r.name): r for r in references}
    by_prompt: dict[str, list[SetClip]] = {}
    for reference in references:
        for prompt in _all_prompts(reference):
            by_prompt.setdefault(prompt, []).append(reference)
    pairs = {}
    for clip in clips:
        about = clip.facts.get("reference")
        found = names.get(_stem(clip.name if about is None else str(about)))
        if found is None and about is None:
            alike = {r.name: r for p in _all_prompts(clip) for r in by_prompt.get(p, ())}
            found = next(iter(alike.values())) if len(alike) == 1 else None
        if found is not None and found.name not in unusable:
            pairs[clip.name] = found
    return pairs


def _all_prompts(clip: SetClip) -> set[str]:
    return {prompt for prompt in (*clip.prompts, clip.normalized_prompt) if prompt}


def cluster(clip: SetClip, real: SetClip | None) -> str:
    """Name the cluster of a clip: clips of a cluster are not independent and resampled together.

    Args:
        real: the clip's real clip; clips with the same real clip are a cluster.  If it is None,
            clips with the same prompt are a cluster.
    """
    about = clip.facts.get("reference") if real is None else real.name
    if about is not None:
        return json.dumps(["real", _stem(str(about))])
    return json.dumps(["prompt", clip.prompt] if clip.prompt is not None else ["clip", clip.name])


def key(clip: SetClip, with_reference: bool = True) -> str:
    """Identify a clip across models: by prompt and seed, or by name if either is unknown.

    Args:
        with_reference: also use the name of the real clip.
    """
    if clip.prompt is not None and "seed" in clip.facts:
        about = [clip.prompt, clip.facts["seed"]]
        if with_reference:
            about.append(clip.facts.get("reference"))
        return json.dumps(about, ensure_ascii=False)
    return _stem(clip.name)


def shuffled(clips: Sequence[SetClip], with_reference: bool = True) -> list[SetClip]:
    """Sort clips by a hash of their `key`: independent of content, and equal for all models."""

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
        raise AttuneError(f"{path}: not JSON: {error}; expected a clip's prompt") from error
    if not isinstance(facts, dict):
        raise AttuneError(f"{path}: expected an object with a clip's prompt and seed")
    return facts


def _rows(path: Path, columns: tuple[str, ...]) -> list[list[str]]:
    """These columns of a CSV file: id, start in seconds, caption, ..."""
    rows = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            lacking = [name for name in columns if name not in (reader.fieldnames or ())]
            if lacking:
                raise AttuneError(f"{path}: no column {lacking[0]} in its header")
            for row in reader:
                found = [row[name] for name in columns]
                try:
                    int(float(found[1] or 0))
                except (ValueError, OverflowError):
                    found[0] = ""
                if not found[0] or not found[2].strip():
                    at = f"{path}, line {reader.line_num}"
                    raise AttuneError(f"{at}: expected {', '.join(columns)}")
                rows.append(found)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AttuneError(f"{path}: cannot be read as a list of captions: {error}") from error
    return rows
