"""The clips that a report speaks of: real ones of known classes, reconstructed, generated."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import soundfile
import torch
from rich.console import Console
from scipy.stats import binomtest

from common.audio import AudioError, Wave, resample
from common.codec import Codec
from common.errors import AttuneError
from common.shards import ShardDataset
from common.uris import read_source
from training.evaluation.agreement.judge import FOLDS, Agreement
from training.sampling.config import SamplingConfig
from training.sampling.outputs import write_clip
from training.sampling.sampler import Sampler

MAX_CLASSES = 20
"""Only the most frequent classes are judged."""
MIN_CLIPS = 5
"""A class needs this many training clips."""


@dataclass(frozen=True)
class LabelledClip:
    """One real clip of a known class."""

    row: int
    """In the manifest."""
    label: str
    prompt: str
    group: str
    wave: Wave


@dataclass(frozen=True)
class GeneratedClip:
    """One clip made by a model."""

    label: str
    prompt: str
    seed: int
    path: Path
    wave: Wave


@dataclass(frozen=True)
class ModelResult:
    """What one trained model made and how it was judged."""

    name: str
    checkpoint: str
    clips: list[GeneratedClip]
    agreement: Agreement
    curve: list[dict[str, Any]]


def labelled_clips(
    dataset: ShardDataset, sample_rate: int, held_out: bool = False
) -> list[LabelledClip]:
    """Real clips of one known class: exactly one tag, no caption.

    Args:
        dataset: the shards' manifest says where the source audio lies.
        sample_rate: Hz of the returned waveforms.
        held_out: rows of the other splits instead of `train`.

    Raises:
        AttuneError: fewer than two classes have enough training clips, or audio is gone.
    """
    split = pc.equal(dataset.manifest["split"], "train")
    table = dataset.manifest.append_column("row", pa.array(range(len(dataset))))
    table = table.filter(pc.invert(split) if held_out else split)
    table = table.filter(
        pc.and_(
            pc.equal(pc.list_value_length(table["tags"]), 1),
            pc.equal(pc.coalesce(pc.list_value_length(table["captions"]), pa.scalar(0)), 0),
        )
    )
    columns = ["row", "tags", "prompts", "group_id", "audio_uri", "start_s", "end_s"]
    rows = table.select(columns).to_pylist()
    if not held_out:
        counts = Counter(row["tags"][0] for row in rows)
        groups: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            groups[row["tags"][0]].add(row["group_id"])
        enough = [
            name
            for name, count in counts.most_common()
            if count >= MIN_CLIPS and len(groups[name]) >= FOLDS
        ]
        frequent = set(enough[:MAX_CLASSES])
        if len(frequent) < 2:
            raise AttuneError(
                f"report: needs two classes with at least {MIN_CLIPS} training clips of "
                f"exactly one tag and no caption, from {FOLDS} source recordings or more (the "
                f"judge's cross-validation keeps a recording together); found {len(frequent)}"
            )
        rows = [row for row in rows if row["tags"][0] in frequent]
    clips = []
    for row in rows:
        try:
            wave, rate = read_source(row["audio_uri"], row["start_s"], row["end_s"])
        except AudioError as error:
            raise AttuneError(f"report: source audio {row['audio_uri']}: {error}") from error
        clips.append(
            LabelledClip(
                row["row"],
                row["tags"][0],
                row["prompts"][0],
                row["group_id"],
                resample(wave, rate, sample_rate),
            )
        )
    return clips


def reconstruct(dataset: ShardDataset, codec: Codec, clip: LabelledClip) -> Wave:
    """Decode the codes that the shards hold for a clip: float32 of the clip's own length."""
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
    """Clips of a model for every class, from disk where this checkpoint made them already.

    Args:
        folder: where the clips are kept.
        prompts: {class: what the model is asked for}.
        clips_per_class: how many, with seeds 0, 1, ...
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [
        (label, prompt, seed)
        for label, prompt in sorted(prompts.items())
        for seed in range(clips_per_class)
    ]
    sampling = sampler.settled(sampling, min(len(wanted), sampling.batch_size))
    seconds = sampling.duration_s
    made_by = sampler.facts(sampling) | {
        "duration_s": seconds,
        "sample_rate": sampler.codec.sample_rate,
        "saved": sampler.checkpoint.stat().st_mtime_ns,
    }
    paths = [folder / f"{_slug(label)}-seed{seed}.wav" for label, _, seed in wanted]
    missing = [
        index
        for index, ((_, prompt, seed), path) in enumerate(zip(wanted, paths, strict=True))
        if not _is_made(path, made_by | _prompt_facts(prompt, seed))
    ]
    if missing:
        trained = sampler.trained_s
        windows = f", in windows of the {trained:g} s that it was trained on"
        console.print(
            f"{folder.name}: generating {len(missing)} clips of {seconds:g} s"
            + windows * (seconds > trained)
        )
        texts = [wanted[index][1] for index in missing]
        seeds = [wanted[index][2] for index in missing]
        waves, _ = sampler.generate(texts, seconds, seeds, sampling, normalized=True)
        for index, wave in zip(missing, waves, strict=True):
            _, prompt, seed = wanted[index]
            facts = made_by | _prompt_facts(prompt, seed)
            write_clip(folder, paths[index].stem, wave, facts, "wav")
    return [
        GeneratedClip(label, prompt, seed, path, soundfile.read(path, dtype="float32")[0])
        for (label, prompt, seed), path in zip(wanted, paths, strict=True)
    ]


def read_curve(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's `log.jsonl`; a step that was logged again after a resume counts once."""
    path = run / "log.jsonl"
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return list({row["step"]: row for row in rows if "dropped" in row}.values())


def paired_comparison(first: ModelResult, other: ModelResult) -> dict[str, Any]:
    """Do two models that got the same prompts and seeds differ by more than noise?

    Exact McNemar test: of the clips on which they disagree, is the split other than even?
    """
    a = [h == c.label for h, c in zip(first.agreement.judged, first.clips, strict=True)]
    b = [h == c.label for h, c in zip(other.agreement.judged, other.clips, strict=True)]
    only_first = sum(x and not y for x, y in zip(a, b, strict=True))
    only_other = sum(y and not x for x, y in zip(a, b, strict=True))
    disagree = only_first + only_other
    return {
        "models": [first.name, other.name],
        "difference": first.agreement.rate - other.agreement.rate,
        "only_first": only_first,
        "only_other": only_other,
        "p_value": float(binomtest(only_first, disagree, 0.5).pvalue) if disagree else 1.0,
    }


def _prompt_facts(prompt: str, seed: int) -> dict[str, Any]:
    # The shards' prompts are in training form: nothing is left to normalize.
    return {"prompt": prompt, "normalized_prompt": prompt, "seed": seed}


def _is_made(path: Path, facts: dict[str, Any]) -> bool:
    try:
        found = json.loads(path.with_suffix(".json").read_text())
    except (OSError, ValueError):
        return False
    return path.is_file() and found == json.loads(json.dumps(facts))


def _slug(label: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in label.lower()).split())


def without_verdicts(agreement: Agreement) -> dict[str, Any]:
    return {key: value for key, value in asdict(agreement).items() if key != "judged"}
