"""The clips that a model is measured by: one for every prompt of a reference."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from common.errors import AttuneError
from training.evaluation.clip_sets import SetClip
from training.evaluation.metrics.backbones.backbone import file_hash
from training.sampling.config import SamplingConfig
from training.sampling.outputs import write_clip
from training.sampling.sampler import Sampler

_CHUNK = 4
"""Batches generated between two writes."""


def generate_set(
    sampler: Sampler,
    sampling: SamplingConfig,
    prompts: Sequence[SetClip],
    out: Path,
    console: Console,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    longest_s: float = float("inf"),
) -> Path:
    """A clip of a model for every prompt of a set, from disk where it was made already.

    Args:
        prompts: clips whose prompts are asked for; the files say which one as `reference`.
        out: folder for folders of clips, one per list of prompts.
        seed: of a clip's first prompt; further ones, and clips whose prompt was there before, get
            the next seeds.
        seeds: one per clip, in place of `seed`, and taken as they are.
        longest_s: of a clip, whatever `sampling` says.

    Returns:
        The folder with a wav and a JSON per prompt, and nothing else.

    Raises:
        AttuneError: no prompts.
    """
    if not any(clip.prompts for clip in prompts):
        raise AttuneError(
            "the reference tells no prompts: name shards, a --preset, or a folder with sidecars"
        )
    wanted = _wanted(sampler, prompts, seed, seeds)
    sampling = sampler.settled(sampling, min(len(wanted), sampling.batch_size))
    seconds = min(sampling.duration_s, sampler.trained_s, longest_s)
    made_by = sampler.facts(sampling) | {
        "duration_s": seconds,
        "sample_rate": sampler.codec.sample_rate,
        "checkpoint_sha256": file_hash(sampler.checkpoint / "model.safetensors"),
    }
    asked = json.dumps(sorted((name, facts) for name, (_, facts) in wanted.items()))
    folder = out / hashlib.blake2b(asked.encode(), digest_size=6).hexdigest()
    todo = [n for n, (_, f) in wanted.items() if not _is_made(folder / f"{n}.wav", made_by | f)]
    if todo:
        console.print(
            f"generating {len(todo)} clips of {seconds:g} s into {folder}",
            highlight=False,
            soft_wrap=True,
        )
    step, done = _CHUNK * sampling.batch_size, 0
    for normalized in (False, True):
        names = [name for name in todo if wanted[name][0] is normalized]
        for start in range(0, len(names), step):
            part = names[start : start + step]
            asked_for = [wanted[name][1] for name in part]
            texts, seeds = [f["prompt"] for f in asked_for], [f["seed"] for f in asked_for]
            waves, _ = sampler.generate(texts, seconds, seeds, sampling, normalized=normalized)
            for name, wave, about in zip(part, waves, asked_for, strict=True):
                write_clip(folder, name, wave, made_by | about, "wav")
            done += len(part)
            console.print(f"  {done} of {len(todo)}", highlight=False)
    return folder


def _wanted(
    sampler: Sampler, prompts: Sequence[SetClip], seed: int, seeds: Sequence[int] | None
) -> dict[str, tuple[bool, dict[str, Any]]]:
    """{file's name: whether its prompt is in training form, and what is asked for}."""
    wanted: dict[str, tuple[bool, dict[str, Any]]] = {}
    taken: set[tuple[str, int]] = set()
    for clip, first in zip(prompts, seeds or [seed] * len(prompts), strict=True):
        # The shards' further prompts are other wordings of the first; a list's are asked for.
        asked = clip.prompts[:1] if clip.normalized else clip.prompts
        plain = asked if clip.normalized else sampler.normalize(asked)
        for i, (prompt, heard) in enumerate(zip(asked, plain, strict=True)):
            name = hashlib.blake2b(f"{clip.name}/{i}".encode(), digest_size=8).hexdigest()
            own = first + i
            # What comes to the same prompt and seed would be the same clip.
            while seeds is None and (heard, own) in taken:
                own += 1
            taken.add((heard, own))
            facts: dict[str, Any] = {"prompt": prompt, "seed": own, "reference": clip.name}
            if clip.captions and (caption := sampler.caption_of(prompt, clip.captions)):
                facts["caption"] = caption
            wanted[name] = clip.normalized, facts
    return wanted


def _is_made(path: Path, facts: dict[str, Any]) -> bool:
    try:
        found = json.loads(path.with_suffix(".json").read_text())
    except (OSError, ValueError):
        return False
    return path.is_file() and found == json.loads(json.dumps(facts))
