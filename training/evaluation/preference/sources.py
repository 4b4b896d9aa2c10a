"""Where a study's clips come from: two runs, two folders, or one of each; paired by prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from rich.console import Console

from common.errors import AttuneError
from common.prompts import normalize_prompts
from common.shards import ShardDataset
from training.evaluation.clip_sets import SetClip, read_folder
from training.evaluation.generated_set import generate_set
from training.run.folder import latest_checkpoint
from training.sampling.config import SamplingConfig
from training.sampling.outputs import read_prompts
from training.sampling.sampler import Sampler

Key = tuple[str, int | None]
"""Prompt and seed."""


@dataclass(frozen=True)
class Wanted:
    """A pair that is to be made."""

    prompt: str
    """As the model is asked."""
    seed: int
    shown: str
    """As raters read it."""
    normalized: bool
    """`prompt` is in training form."""


@dataclass(frozen=True)
class Origin:
    """What `--a` or `--b` names: a trained run, or a folder of clips."""

    name: str
    run: Path | None
    clips: dict[Key, SetClip] = field(default_factory=dict)
    """Of a folder."""
    folder: str = ""


@dataclass(frozen=True)
class Found:
    """Two clips of one prompt and seed."""

    prompt: str
    """As raters read it."""
    seed: int | None
    a: SetClip
    b: SetClip


def find_origin(spec: str, run_dir: str | None) -> Origin:
    """Tell runs from folders.

    Args:
        spec: a folder of clips, a run's folder, or the name of a run in `run_dir`.
        run_dir: of the recipe; None without one.

    Raises:
        AttuneError: neither, a folder without usable sidecars, or a run without a recipe.
    """
    path = Path(spec)
    name = path.name or str(path.resolve().name)
    if not path.exists() and run_dir is not None:
        path = Path(run_dir) / spec
    if latest_checkpoint(path) is not None:
        if run_dir is None:
            raise AttuneError(f"{spec} is a trained run: --config names its recipe")
        return Origin(name, path)
    if not path.is_dir():
        hint = "" if run_dir else "; a run by its name needs --config"
        raise AttuneError(f"{spec}: neither a trained run nor a folder of clips{hint}")
    clips: dict[Key, SetClip] = {}
    for clip in read_folder(path).clips:
        key = _key(clip, path)
        if key in clips:
            raise AttuneError(
                f"{path}: {clips[key].name} and {clip.name} have the same prompt and seed; leave "
                "one of them out"
            )
        clips[key] = clip
    return Origin(name, None, clips, str(path))


def wanted_pairs(
    a: Origin,
    b: Origin,
    data_dir: str | None,
    prompts: Path | None,
    split: str,
    pairs: int,
    seed: int,
) -> list[Wanted]:
    """What runs are asked for.  Nothing where both sides are folders: their clips tell.

    A run beside a folder is asked for the folder's prompts and seeds.  Two runs get those of the
    file, or else the prompts of the shards' split: the first prompt of a clip, each once, in an
    order without meaning that stays the same; where there are fewer than `pairs`, they come again
    with the next seed.

    Args:
        data_dir: the recipe's shards; None without a recipe.
        seed: of clips whose prompt comes without one.

    Raises:
        AttuneError: no prompts there, or a file of prompts beside a folder that has its own.
    """
    if a.run is None or b.run is None:
        if prompts is not None:
            raise AttuneError("--prompts is for two runs; a folder of clips has prompts of its own")
        if a.run is None and b.run is None:
            return []
        told = a.clips if a.run is None else b.clips
        return [
            Wanted(text, seed if own is None else own, text, False)
            for text, own in _shuffled(list(told))[:pairs]
        ]
    if prompts is not None:
        jobs = read_prompts(prompts)
        asked = [(job.text, seed if job.seed is None else job.seed) for job in jobs]
        if len(set(asked)) < len(asked):
            twice = next(key for key in asked if asked.count(key) > 1)
            raise AttuneError(f"prompts {prompts}: {twice[0]!r} with seed {twice[1]} stands twice")
        if not asked:
            raise AttuneError(f"prompts {prompts}: holds no prompt")
        return [Wanted(text, own, text, False) for text, own in asked[:pairs]]
    assert data_dir is not None
    shown = split_prompts(data_dir, split)
    texts = [text for text, _ in _shuffled([(text, 0) for text in shown])]
    return [
        Wanted(text, seed + i // len(texts), shown[text], True)
        for i, text in ((i, texts[i % len(texts)]) for i in range(pairs))
    ]


def split_prompts(data_dir: str, split: str) -> dict[str, str]:
    """First prompts of a split's clips: {as the model was trained: as a person wrote it}.

    The second is the caption that the prompt was made of, and the prompt itself where there is
    none: tags and music's fields are prompts as they stand.

    Raises:
        AttuneError: no shards, or none of that split.
    """
    dataset = ShardDataset.open(data_dir)
    manifest = dataset.manifest
    rows = manifest.filter(pc.equal(manifest["split"], split))
    if not len(rows):
        found = sorted({str(name) for name in manifest["split"].unique().to_pylist()})
        raise AttuneError(
            f"{data_dir}: no clips in split {split!r}; --split takes {', '.join(found)}"
        )
    policy = dataset.summary["prompt_policy"]
    shown: dict[str, str] = {}
    for row in rows.select(["prompts", "captions"]).to_pylist():
        prompt = row["prompts"][0]
        captions = row["captions"] or []
        made = normalize_prompts(captions, policy)
        written = next((c for c, plain in zip(captions, made, strict=True) if plain == prompt), "")
        shown[prompt] = shown.get(prompt) or written
    return {prompt: written or prompt for prompt, written in shown.items()}


def make_clips(
    origin: Origin,
    wanted: Sequence[Wanted],
    sampler: Sampler | None,
    sampling: SamplingConfig,
    console: Console,
) -> tuple[dict[Key, SetClip], str]:
    """A side's clips by prompt and seed, and the folder they lie in; a run makes what it lacks.

    Args:
        sampler: of the side's run; None for a folder.
    """
    if origin.run is None or sampler is None:
        return origin.clips, origin.folder
    asked = [
        SetClip(f"{job.prompt}/{job.seed}", "", prompts=(job.prompt,), normalized=job.normalized)
        for job in wanted
    ]
    made = origin.run.parent / "evaluated" / origin.run.name
    seeds = [job.seed for job in wanted]
    folder = generate_set(sampler, sampling, asked, made, console, seeds=seeds)
    return {_key(clip, folder): clip for clip in read_folder(folder).clips}, str(folder)


def match(
    a: dict[Key, SetClip], b: dict[Key, SetClip], wanted: Sequence[Wanted], pairs: int
) -> tuple[list[Found], list[Key]]:
    """Pair clips by prompt and seed; by the prompt alone where one side knows no seeds.

    Returns:
        `pairs` of them at most, in the order of `wanted`, else drawn without regard to content; and
        the keys that only one side has, where nobody asked for particular ones.

    Raises:
        AttuneError: not a single pair, or a prompt without seeds that stands for several clips.
    """
    if any(seed is None for _, seed in (*a, *b)):
        a, b, wanted = _without_seeds(a), _without_seeds(b), ()
    common = a.keys() & b.keys()
    if not common:
        raise AttuneError(
            "the two sides have no prompt and seed in common; sidecars tell `prompt` and `seed`"
        )
    shown: dict[Key, str] = {(job.prompt, job.seed): job.shown for job in wanted}
    keys = [key for key in shown if key in common] or _shuffled(list(common))[:pairs]
    alone = [] if wanted else sorted(a.keys() ^ b.keys(), key=str)
    return [Found(shown.get(key, key[0]), key[1], a[key], b[key]) for key in keys], alone


def shared_facts(clips: Sequence[SetClip]) -> dict[str, Any]:
    """What the sidecars of all clips say alike."""
    first, *rest = (clip.facts for clip in clips)
    return {
        name: value
        for name, value in sorted(first.items())
        if all(name in facts and facts[name] == value for facts in rest)
    }


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Settings of sampling in which the two sides differ: a study should compare models."""
    about = {"checkpoint", "checkpoint_sha256", "step", "config_hash", "reference"}
    return [
        name for name in sorted(a.keys() & b.keys()) if name not in about and a[name] != b[name]
    ]


def _without_seeds(clips: dict[Key, SetClip]) -> dict[Key, SetClip]:
    found: dict[Key, SetClip] = {}
    for (prompt, _), clip in clips.items():
        if (prompt, None) in found:
            raise AttuneError(
                f"{prompt!r} has several clips on one side and no seeds on the other; name the "
                "seed in the sidecars"
            )
        found[prompt, None] = clip
    return found


def _key(clip: SetClip, folder: Path) -> Key:
    seed = clip.facts.get("seed")
    if clip.prompt is None:
        raise AttuneError(
            f"{folder}: {clip.name} has no sidecar with a `prompt`; `generate` writes them"
        )
    if seed is not None and (type(seed) is not int or seed < 0):
        raise AttuneError(f"{folder}: seed {seed!r} of {clip.name} is not a whole number from 0 on")
    return clip.prompt, seed


def _shuffled(keys: Sequence[Key]) -> list[Key]:
    """In an order that has nothing to do with their content, and is always the same."""
    return sorted(
        keys, key=lambda key: hashlib.blake2b(json.dumps(key).encode(), digest_size=8).digest()
    )
