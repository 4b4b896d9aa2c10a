"""The clips of a report: real clips of known classes, their reconstructions, generated clips."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import soundfile
import torch
from rich.console import Console

from common.audio import AudioError, Wave, resample
from common.codec import Codec
from common.errors import AttuneError
from common.shards import ShardDataset
from common.uris import read_source
from training.evaluation.agreement.judge import FOLDS, Agreement, SoundJudge
from training.evaluation.generated_set import Wanted, generate_missing
from training.run.log import read_log
from training.sampling.config import SamplingConfig
from training.sampling.outputs import slug
from training.sampling.sampler import Sampler

MAX_CLASSES = 20
"""Only the most frequent classes are used."""
MIN_CLIPS = 5
"""A class needs this many training clips."""


@dataclass(frozen=True)
class LabelledClip:
    """One real clip of a known class."""

    row: int
    """Row of the manifest."""
    label: str
    prompt: str
    group: str
    wave: Wave


@dataclass(frozen=True)
class GeneratedClip:
    """One clip made by a model."""

    label: str
    seed: int
    wave: Wave


@dataclass(frozen=True)
class ModelResult:
    """The clips of one trained model, and how the judge classified them."""

    name: str
    checkpoint: str
    clips: list[GeneratedClip]
    agreement: Agreement
    curve: list[dict[str, Any]]


def labelled_clips(
    dataset: ShardDataset, sample_rate: int, held_out: bool = False
) -> list[LabelledClip]:
    """Read the real clips of one known class: exactly one tag, no caption.

    Args:
        dataset: shards; their manifest names the source audio.
        sample_rate: sample rate of the returned waveforms, Hz.
        held_out: read the other splits instead of `train`.

    Raises:
        AttuneError: fewer than two classes have enough training clips, or audio cannot be read.
    """
    split = pc.equal(dataset.manifest["split"], "train")
    table = dataset.manifest.append_column("row", pa.array(range(len(dataset))))
    table = table.filter(pc.invert(split) if held_out else split)
    captions = pc.coalesce(pc.list_value_length(table["captions"]), pa.scalar(0))
    one_tag = pc.equal(pc.list_value_length(table["tags"]), 1)
    table = table.filter(pc.and_(one_tag, pc.equal(captions, 0)))
    columns = ["row", "tags", "prompts", "group_id", "audio_uri", "start_s", "end_s"]
    rows = table.select(columns).to_pylist()
    if not held_out:
        frequent = _frequent_classes(rows)
        rows = [row for row in rows if row["tags"][0] in frequent]
    clips = []
    for row in rows:
        try:
            wave, rate = read_source(row["audio_uri"], row["start_s"], row["end_s"])
        except AudioError as error:
            raise AttuneError(f"report: source audio {row['audio_uri']}: {error}") from error
        about = row["row"], row["tags"][0], row["prompts"][0], row["group_id"]
        clips.append(LabelledClip(*about, resample(wave, rate, sample_rate)))
    return clips


def _frequent_classes(rows: list[dict[str, Any]]) -> set[str]:
    """The `MAX_CLASSES` most frequent classes that have enough clips and source recordings."""
    counts = Counter(row["tags"][0] for row in rows)
    groups: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        groups[row["tags"][0]].add(row["group_id"])
    enough = [
        name
        for name, count in counts.most_common()
        if count >= MIN_CLIPS and len(groups[name]) >= FOLDS
    ]
    if len(enough) < 2:
        raise AttuneError(
            f"report: needs two classes with at least {MIN_CLIPS} training clips of "
            f"exactly one tag and no caption, from {FOLDS} source recordings or more (the "
            f"judge's cross-validation keeps a recording together); found {len(enough)}"
        )
    return set(enough[:MAX_CLASSES])


def fit_judge(clips: list[LabelledClip], sample_rate: int) -> SoundJudge:
    """Fit the judge on real clips."""
    return SoundJudge(sample_rate).fit(
        [clip.wave for clip in clips], [clip.label for clip in clips], [c.group for c in clips]
    )


def reconstruct(dataset: ShardDataset, codec: Codec, clip: LabelledClip) -> Wave:
    """Decode the codes of a clip from the shards: float32, as long as the clip."""
    codes = torch.from_numpy(dataset.read(clip.row).codes.astype(np.int64))
    return codec.decode(codes[None])[0].cpu().numpy()[: len(clip.wave)]


def generated_clips(
    sampler: Sampler,
    folder: Path,
    prompts: dict[str, str],
    clips_per_class: int,
    sampling: SamplingConfig,
    console: Console,
) -> list[GeneratedClip]:
    """Clips of a model for every class; clips that this checkpoint made already are kept.

    Args:
        folder: where the clips are kept.
        prompts: {class: prompt}, prompts in training form.
        clips_per_class: number of clips of each class, with seeds 0, 1, ...
    """
    places = [(label, seed) for label in sorted(prompts) for seed in range(clips_per_class)]
    wanted: Wanted = {}
    for label, seed in places:
        prompt = prompts[label]
        facts = {"prompt": prompt, "normalized_prompt": prompt, "seed": seed}
        wanted[f"{slug(label)}-seed{seed}"] = True, facts
    generate_missing(sampler, sampling, wanted, sampling.duration_s, folder, console)
    return [
        GeneratedClip(label, seed, soundfile.read(folder / f"{name}.wav", dtype="float32")[0])
        for (label, seed), name in zip(places, wanted, strict=True)
    ]


def read_curve(run: Path) -> list[dict[str, Any]]:
    """The steps of a run's log; a step that was logged again after a resume counts once."""
    rows = read_log(run) if (run / "log.jsonl").is_file() else []
    return list({row["step"]: row for row in rows if "dropped" in row}.values())
