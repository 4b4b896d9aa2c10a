"""The clips of a study: from two runs, two folders, or one of each; paired by prompt and seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from common.errors import AttuneError
from common.prompts import PromptForm, normalize_prompts, recorded_form, tag_words
from common.shards import ShardDataset
from training.checkpoint.load import read_description
from training.evaluation.clip_sets import SetClip, read_folder, rows_of_split
from training.evaluation.generated_set import generate_set
from training.run.folder import latest_checkpoint
from training.sampling.config import SamplingConfig
from training.sampling.outputs import read_prompts
from training.sampling.sampler import Sampler

Key = tuple[str, int | None]
"""Prompt and seed."""


Wanted = dict[Key, tuple[str, bool]]
"""Pairs to generate: {(prompt, seed): (prompt as raters read it, whether the key's prompt is in
training form)}."""


@dataclass(frozen=True)
class Origin:
    """The value of `--a` or `--b`: a trained run, or a folder of clips."""

    name: str
    run: Path | None
    clips: dict[Key, SetClip] = field(default_factory=dict)
    """The clips of a folder."""
    folder: str = ""


@dataclass(frozen=True)
class Found:
    """Two clips with the same prompt and seed."""

    prompt: str
    """The prompt as raters read it."""
    seed: int | None
    a: SetClip
    b: SetClip


def find_origin(spec: str, run_dir: str | None) -> Origin:
    """Find the run or the folder that an option names.

    Args:
        spec: a folder of clips, the folder of a run, or the name of a run in `run_dir`.
        run_dir: `run_dir` of the recipe; None without a recipe.

    Raises:
        AttuneError: neither a run nor a folder, a clip without a usable sidecar, or a run without
            a recipe.
    """
    path = Path(spec)
    name = path.name or path.resolve().name
    if not path.exists() and run_dir is not None:
        path = Path(run_dir) / spec
    if latest_checkpoint(path) is not None:
        if run_dir is None:
            raise AttuneError(f"{spec} is a trained run: give its recipe with --config")
        return Origin(name, path)
    if not path.is_dir():
        hint = "" if run_dir else "; a run by its name needs --config"
        raise AttuneError(f"{spec}: neither a trained run nor a folder of clips{hint}")
    clips: dict[Key, SetClip] = {}
    for clip in read_folder(path).clips:
        other = clips.setdefault(_key(clip, path), clip)
        if other is not clip:
            raise AttuneError(
                f"{path}: {other.name} and {clip.name} have the same prompt and seed; delete one"
            )
    return Origin(name, None, clips, str(path))


def wanted_pairs(
    a: Origin,
    b: Origin,
    data_dir: str | None,
    prompts: Path | None,
    split: str,
    pairs: int,
    seed: int,
) -> Wanted:
    """List the pairs to generate; none if both sides are folders.

    A run that is compared with a folder gets the prompts and seeds of the folder.  Two runs get the
    prompts of the file; without a file, the prompts of the shards' split: the first prompt of each
    clip, without duplicates, in a fixed random order.  If these are fewer than `pairs`, they are
    repeated with the next seed.

    Args:
        data_dir: shards of the recipe; None without a recipe.
        seed: seed for prompts without a seed.

    Raises:
        AttuneError: no prompts, or a file of prompts although a side is a folder.
    """
    if a.run is None or b.run is None:
        if prompts is not None:
            raise AttuneError("--prompts is for two runs; a folder of clips has its own prompts")
        if a.run is None and b.run is None:
            return {}
        keys = _shuffled(a.clips if a.run is None else b.clips)
        asked = [(text, seed if own is None else own) for text, own in keys]
    elif prompts is not None:
        asked = [(p.text, seed if p.seed is None else p.seed) for p in read_prompts(prompts)]
        if twice := next((key for key in asked if asked.count(key) > 1), None):
            raise AttuneError(
                f"prompts {prompts}: {twice[0]!r} with seed {twice[1]} is there twice; delete one"
            )
        if not asked:
            raise AttuneError(f"prompts {prompts}: no prompt in this file")
    else:
        assert data_dir is not None
        shown = split_prompts(data_dir, split)
        texts = [text for text, _ in _shuffled([(text, 0) for text in shown])]
        repeated = ((i // len(texts), texts[i % len(texts)]) for i in range(pairs))
        return {(text, seed + more): (shown[text], True) for more, text in repeated}
    return {(text, own): (text, False) for text, own in asked[:pairs]}


def split_prompts(data_dir: str, split: str) -> dict[str, str]:
    """First prompts of a split's clips: {prompt in training form: prompt as a person wrote it}.

    The latter is the caption that the prompt was made of, or the tags.  Prompts made of music
    fields are shown as they are.

    Raises:
        AttuneError: no shards, or no clips of that split.
    """
    dataset = ShardDataset.open(data_dir)
    rows = rows_of_split(data_dir, dataset, split)
    form = recorded_form(dataset.summary)
    shown: dict[str, str] = {}
    for row in rows.select(["prompts", "captions", "tags"]).to_pylist():
        prompt = row["prompts"][0]
        captions, tags = row["captions"] or [], row["tags"] or []
        made = normalize_prompts(captions, form)
        written = next((c for c, plain in zip(captions, made, strict=True) if plain == prompt), "")
        if not written and tags:
            words = [tag_words(tag) for tag in tags]
            if dataset.summary.get("tag_form") == "policy":
                words = normalize_prompts(words, form)
            written = ", ".join(_tags_of(prompt, tags, words) or ())
        shown[prompt] = shown.get(prompt) or written
    return {prompt: written or prompt for prompt, written in shown.items()}


def _tags_of(prompt: str, tags: Sequence[str], words: Sequence[str]) -> list[str] | None:
    """The tags whose words follow each other in the prompt; None if it is not made of tags alone.

    Not all of them: the text stage leaves out repeated tags and tags that others imply.
    """
    if not prompt:
        return []
    for i, part in enumerate(words):
        if part and f"{prompt} ".startswith(f"{part} "):
            rest = _tags_of(prompt[len(part) + 1 :], tags[i + 1 :], words[i + 1 :])
            if rest is not None:
                return [tags[i], *rest]
    return None


def recorded_forms(a: Origin, b: Origin) -> list[PromptForm]:
    """The forms of prompts that the sides which are runs were trained in.

    Raises:
        AttuneError: a checkpoint's `model.json` is damaged.
    """
    checkpoints = [latest_checkpoint(side.run) for side in (a, b) if side.run is not None]
    return [recorded_form(read_description(path)) for path in checkpoints if path is not None]


def make_clips(
    origin: Origin,
    wanted: Wanted,
    sampler: Sampler | None,
    sampling: SamplingConfig,
    console: Console,
    as_is: bool = False,
) -> tuple[dict[Key, SetClip], str]:
    """The clips of a side by prompt and seed, and their folder; a run generates missing clips.

    Args:
        sampler: sampler of the run; None for a folder.
        as_is: take prompts that are not in training form as they are.
    """
    if origin.run is None or sampler is None:
        return origin.clips, origin.folder
    asked = [
        SetClip(f"{prompt}/{seed}", "", prompts=(prompt,), normalized=normalized)
        for (prompt, seed), (_, normalized) in wanted.items()
    ]
    made = origin.run.parent / "evaluated" / origin.run.name
    seeds = [seed for _, seed in wanted if seed is not None]
    folder = generate_set(sampler, sampling, asked, made, console, seeds=seeds, as_is=as_is)
    return {_key(clip, folder): clip for clip in read_folder(folder).clips}, str(folder)


def match(
    a: dict[Key, SetClip], b: dict[Key, SetClip], wanted: Wanted, pairs: int
) -> tuple[list[Found], list[Key]]:
    """Pair clips by prompt and seed, or only by prompt if one side has no seeds.

    Returns:
        At most `pairs` pairs, in the order of `wanted`, or else in a fixed random order; and the
        keys that only one side has (empty if pairs were `wanted`).

    Raises:
        AttuneError: no pair at all, or a prompt without seeds that has several clips.
    """
    if any(seed is None for _, seed in (*a, *b)):
        a, b, wanted = _without_seeds(a), _without_seeds(b), {}
    common = a.keys() & b.keys()
    if not common:
        raise AttuneError(
            "the two sides have no prompt and seed in common; see `prompt` and `seed` in the "
            "sidecars"
        )
    keys = [key for key in wanted if key in common] or _shuffled(common)[:pairs]
    unmatched = [] if wanted else sorted(a.keys() ^ b.keys(), key=str)
    shown = [wanted[key][0] if key in wanted else key[0] for key in keys]
    found = [Found(t, key[1], a[key], b[key]) for t, key in zip(shown, keys, strict=True)]
    return found, unmatched


def shared_facts(clips: Sequence[SetClip]) -> dict[str, Any]:
    """The facts that have the same value in the sidecars of all clips."""
    first, *rest = (clip.facts for clip in clips)
    return {
        name: value
        for name, value in sorted(first.items())
        if all(name in facts and facts[name] == value for facts in rest)
    }


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Sampling settings that differ between the sides: a study should only compare models."""
    about = {"checkpoint", "checkpoint_sha256", "step", "config_hash", "reference"}
    return [name for name in sorted((a.keys() & b.keys()) - about) if a[name] != b[name]]


def _without_seeds(clips: dict[Key, SetClip]) -> dict[Key, SetClip]:
    found: dict[Key, SetClip] = {}
    for (prompt, _), clip in clips.items():
        if (prompt, None) in found:
            raise AttuneError(
                f"{prompt!r} has several clips on one side and no seeds on the other; add `seed` "
                "to the sidecars"
            )
        found[prompt, None] = clip
    return found


def _key(clip: SetClip, folder: Path) -> Key:
    seed = clip.facts.get("seed")
    if clip.prompt is None:
        raise AttuneError(
            f"{folder}: {clip.name} has no sidecar with a `prompt`; `generate` writes sidecars"
        )
    if seed is not None and (type(seed) is not int or seed < 0):
        raise AttuneError(f"{folder}: seed {seed!r} of {clip.name} is not a whole number from 0 on")
    return clip.prompt, seed


def _shuffled(keys: Iterable[Key]) -> list[Key]:
    """Sort keys by a hash: a fixed order that is independent of their content."""
    return sorted(
        keys, key=lambda key: hashlib.blake2b(json.dumps(key).encode(), digest_size=8).digest()
    )
