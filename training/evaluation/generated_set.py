"""Generate the clips that a model is evaluated on, and keep them on disk."""

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

Wanted = dict[str, tuple[bool, dict[str, Any]]]
"""{file name without ending: (whether the prompt is in training form, facts of the sidecar)}.  The
facts have at least `prompt` and `seed`."""
_CHUNK = 4
"""Batches that are generated before their clips are written."""


def generate_set(
    sampler: Sampler,
    sampling: SamplingConfig,
    prompts: Sequence[SetClip],
    out: Path,
    console: Console,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    longest_s: float = float("inf"),
    as_is: bool = False,
) -> Path:
    """Generate one clip for each prompt of a set; clips that exist already are kept.

    Args:
        prompts: clips with the prompts; each sidecar names its clip as `reference`.
        out: parent folder; each list of prompts gets its own folder in it.
        seed: seed of the first prompt of a clip.  Further prompts of the clip, and clips with a
            repeated prompt, get the next seeds.
        seeds: one seed per clip, instead of `seed`.
        longest_s: maximum duration, whatever `sampling` says.
        as_is: take prompts and the negative prompt as they are, not in the form of training.

    Returns:
        The folder with a wav and a JSON file per prompt, and nothing else.

    Raises:
        AttuneError: no prompts.
    """
    if not any(clip.prompts for clip in prompts):
        raise AttuneError(
            "the reference has no prompts: name shards, a --preset, or a folder with sidecars"
        )
    wanted = _wanted(sampler, prompts, seed, seeds, as_is)
    seconds = min(sampling.duration_s, sampler.trained_s, longest_s)
    asked = json.dumps(sorted((name, facts) for name, (_, facts) in wanted.items()))
    folder = out / hashlib.blake2b(asked.encode(), digest_size=6).hexdigest()
    generate_missing(sampler, sampling, wanted, seconds, folder, console)
    return folder


def generate_missing(
    sampler: Sampler,
    sampling: SamplingConfig,
    wanted: Wanted,
    seconds: float,
    folder: Path,
    console: Console,
) -> None:
    """Generate the clips of a folder that do not exist, or that were made in another way."""
    sampling = sampler.settled(sampling, min(len(wanted), sampling.batch_size))
    made_by = sampler.facts(sampling) | {
        "duration_s": seconds,
        "sample_rate": sampler.codec.sample_rate,
        "checkpoint_sha256": file_hash(sampler.checkpoint / "model.safetensors"),
    }
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
            facts = [wanted[name][1] for name in part]
            texts, seeds = [f["prompt"] for f in facts], [f["seed"] for f in facts]
            as_is = facts[0].get("as_is", False)
            waves, _ = sampler.generate(
                texts, seconds, seeds, sampling, normalized=normalized, as_is=as_is
            )
            for name, wave, about in zip(part, waves, facts, strict=True):
                write_clip(folder, name, wave, made_by | about, "wav")
            done += len(part)
            console.print(f"  {done} of {len(todo)}", highlight=False)


def _wanted(
    sampler: Sampler,
    prompts: Sequence[SetClip],
    seed: int,
    seeds: Sequence[int] | None,
    as_is: bool,
) -> Wanted:
    wanted: Wanted = {}
    taken: set[tuple[str, int]] = set()
    for clip, first in zip(prompts, seeds or [seed] * len(prompts), strict=True):
        # Further prompts of a shard's clip are paraphrases of the first one and are not used.  A
        # benchmark's list names all prompts that it wants.
        asked = clip.prompts[:1] if clip.normalized else clip.prompts
        plain = asked if clip.normalized else sampler.normalize(asked, as_is=as_is)
        for i, (prompt, heard) in enumerate(zip(asked, plain, strict=True)):
            name = hashlib.blake2b(f"{clip.name}/{i}".encode(), digest_size=8).hexdigest()
            own = first + i
            # The same prompt (in training form) with the same seed would give the same clip.
            while seeds is None and (heard, own) in taken:
                own += 1
            taken.add((heard, own))
            facts: dict[str, Any] = {"prompt": prompt, "seed": own, "reference": clip.name}
            if clip.captions and (caption := sampler.caption_of(prompt, clip.captions)):
                facts["caption"] = caption
            if as_is:
                facts["as_is"] = True
            wanted[name] = clip.normalized, facts
    return wanted


def _is_made(path: Path, facts: dict[str, Any]) -> bool:
    try:
        found = json.loads(path.with_suffix(".json").read_text())
    except (OSError, ValueError):
        return False
    return path.is_file() and found == json.loads(json.dumps(facts))
