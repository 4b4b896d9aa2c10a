"""Prepare a study: pairs of clips that do not reveal their model, and an order for every rater."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from common.audio import AudioError, Wave
from common.config import Recipe
from common.errors import AttuneError
from training.evaluation.clip_sets import SetClip, load_clip
from training.evaluation.preference.clips import equalize, wav_bytes
from training.evaluation.preference.design import draw_sides
from training.evaluation.preference.sources import (
    Found,
    Key,
    Origin,
    Wanted,
    differing,
    find_origin,
    make_clips,
    match,
    recorded_forms,
    shared_facts,
    wanted_pairs,
)
from training.evaluation.preference.study import (
    Pair,
    Rater,
    Showing,
    Source,
    Study,
    clip_path,
    write_study,
)
from training.sampling.config import SamplingConfig
from training.sampling.sampler import Sampler, check_prompts

_TOKEN_BYTES = 24
_NAME_BYTES = 16
SHORTEST_S = 0.1
"""Minimum duration of a pair, seconds."""


@dataclass(frozen=True)
class Order:
    """The options of `preference prepare`."""

    a: str
    b: str
    prompts: Path | None
    split: str
    pairs: int
    raters: int
    seed: int
    """Random seed of orders and sides."""
    clip_seed: int
    """Random seed of generated clips."""
    loudness: float
    """LUFS."""
    device: str = "cpu"
    as_is: bool = False
    """Take the prompts of the file as they are, not in the form of the models' training."""


@dataclass(frozen=True)
class Draft:
    """A study before its clips are made."""

    a: Origin
    b: Origin
    wanted: Wanted
    as_is: bool = False

    def describe(self, pairs: int) -> dict[str, Any]:
        """What a dry run prints: the sides, and the prompts in the order of the pairs, each with
        the forms in which the runs hear it.

        Raises:
            AttuneError: nothing remains of a prompt, or a checkpoint is damaged.
        """
        unmatched: list[Key] = []
        rows: list[dict[str, Any]] = []
        if self.wanted:
            texts = [text for text, _ in self.wanted]
            taken = self.as_is or all(normalized for _, normalized in self.wanted.values())
            forms = [None] if taken else recorded_forms(self.a, self.b)
            heard = zip(*(check_prompts(texts, form) for form in forms), strict=True)
            for (_, seed), (shown, _), all_heard in zip(
                self.wanted, self.wanted.values(), heard, strict=True
            ):
                rows.append({"prompt": shown, "seed": seed, "heard": sorted(set(all_heard))})
        else:
            found, unmatched = match(self.a.clips, self.b.clips, {}, pairs)
            rows = [{"prompt": pair.prompt, "seed": pair.seed} for pair in found]
        return {
            "a": {"name": self.a.name, "run": self.a.run and str(self.a.run)},
            "b": {"name": self.b.name, "run": self.b.run and str(self.b.run)},
            "pairs": rows,
            "unmatched": [{"prompt": prompt, "seed": seed} for prompt, seed in unmatched],
        }


def draft(order: Order, recipe: Recipe | None) -> Draft:
    """Find both sides and their prompts; writes nothing.

    Raises:
        AttuneError: a side does not exist, or there are no prompts.
    """
    run_dir, data_dir = (recipe.run_dir, recipe.data_dir) if recipe else (None, None)
    a, b = (find_origin(side, run_dir) for side in (order.a, order.b))
    if (a.run or Path(a.folder)).resolve() == (b.run or Path(b.folder)).resolve():
        raise AttuneError(f"--a and --b are the same: {order.a}; name two models")
    if a.name == b.name:
        a, b = replace(a, name=order.a), replace(b, name=order.b)
    about = data_dir, order.prompts, order.split, order.pairs, order.clip_seed
    return Draft(a, b, wanted_pairs(a, b, *about), order.as_is)


def prepare(
    order: Order, recipe: Recipe | None, out: Path, console: Console
) -> tuple[Study, list[str]]:
    """Write the folder of a study.  It appears complete or not at all, and replaces nothing.

    Returns:
        The study, and notes for the user, one line each.

    Raises:
        AttuneError: `out` is not free, a side or a clip cannot be read, or the sides have no prompt
            in common.
    """
    check_free(out)
    plan = draft(order, recipe)
    sampling = recipe.section("sampling", SamplingConfig) if recipe else SamplingConfig()
    sides = []
    for origin in (plan.a, plan.b):
        sampler = Sampler.load(recipe, origin.run, order.device) if recipe and origin.run else None
        sides.append(make_clips(origin, plan.wanted, sampler, sampling, console, order.as_is))
    found, unmatched = match(sides[0][0], sides[1][0], plan.wanted, order.pairs)
    notes = []
    if unmatched:
        notes.append(
            f"{len(unmatched)} clips have no partner with the same prompt and seed; first: "
            f"{unmatched[0]}"
        )
    if len(found) < order.pairs:
        notes.append(f"{len(found)} pairs instead of {order.pairs}")
    facts = [shared_facts([getattr(pair, side) for pair in found]) for side in ("a", "b")]
    if unlike := differing(*facts):
        notes.append(f"the sides were made with different settings: {', '.join(unlike)}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{out.name}-", dir=out.parent, ignore_cleanup_errors=True
        ) as name:
            folder = Path(name)
            rate, pairs, more = _write_clips(folder, found, order.loudness)
            study = Study(
                id=secrets.token_urlsafe(_NAME_BYTES),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                a=Source(name=plan.a.name, clips=sides[0][1], facts=facts[0]),
                b=Source(name=plan.b.name, clips=sides[1][1], facts=facts[1]),
                seed=order.seed,
                sample_rate=rate,
                loudness=order.loudness,
                pairs=pairs,
                raters=invite(order.raters, len(pairs), order.seed),
            )
            write_study(folder, study)
            check_free(out)
            os.rename(folder, out)  # replaces an empty folder only
    except OSError as error:
        raise AttuneError(f"--out {out}: {error.strerror}") from error
    return study, notes + more


def check_free(out: Path) -> None:
    """Raise an AttuneError if a study's folder is not free."""
    if (out / "study.json").exists():
        raise AttuneError(f"{out}: has a study, which is not overwritten; name another --out")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise AttuneError(f"{out}: not an empty folder; name another --out")
    if any(path.exists() and not path.is_dir() for path in out.parents):
        raise AttuneError(f"--out {out}: is below a file; name a folder")


def invite(raters: int, pairs: int, seed: int) -> list[Rater]:
    """Raters with their pairs in order.

    The seed decides orders and sides.  Tokens and names come from the system's random source.
    """
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(pairs) for _ in range(raters)]
    sides = draw_sides(raters, pairs, rng)
    return [
        Rater(
            token=secrets.token_urlsafe(_TOKEN_BYTES),
            showings=[
                Showing(
                    name=secrets.token_urlsafe(_NAME_BYTES),
                    pair=int(pair),
                    a_left=bool(sides[row, pair]),
                    left=secrets.token_urlsafe(_NAME_BYTES),
                    right=secrets.token_urlsafe(_NAME_BYTES),
                )
                for pair in order
            ],
        )
        for row, order in enumerate(orders)
    ]


def _write_clips(
    folder: Path, found: Sequence[Found], loudness: float
) -> tuple[int, list[Pair], list[str]]:
    """Write equalized clips under random names; returns their rate in Hz, the pairs, and notes.

    All clips get the lowest rate of any clip, because high frequencies would reveal the model.  The
    files are written in random order with the same time, because times would reveal it too.
    """
    clips = [(_read(pair.a), _read(pair.b)) for pair in found]
    rate = min(own for pair in clips for _, own in pair)
    pairs, notes, files = [], [], []
    for about, sounds in zip(found, clips, strict=True):
        waves, reached = equalize(sounds, rate, loudness)
        if len(waves[0]) < SHORTEST_S * rate:
            raise AttuneError(
                f"{about.prompt!r}: the shorter clip has {len(waves[0]) / rate:.3f} s; a pair "
                f"needs at least {SHORTEST_S} s"
            )
        if reached is None:
            notes.append(f"{about.prompt!r}: a silent clip, so the two are not equally loud")
        names = [secrets.token_urlsafe(_NAME_BYTES) for _ in waves]
        files += [(name, wav_bytes(wave, rate)) for name, wave in zip(names, waves, strict=True)]
        pairs.append(
            Pair(
                prompt=about.prompt,
                seed=about.seed,
                a=names[0],
                b=names[1],
                loudness=None if reached is None else round(reached, 3),
                duration_s=len(waves[0]) / rate,
            )
        )
        longest, kept = max(len(wave) / own for wave, own in sounds), pairs[-1].duration_s
        if longest > 1.1 * kept:
            notes.append(f"{about.prompt!r}: a clip of {longest:.2f} s was cut to {kept:.2f} s")
    clip_path(folder, "x").parent.mkdir()
    now = datetime.now(UTC).timestamp()
    secrets.SystemRandom().shuffle(files)
    for name, content in files:
        path = clip_path(folder, name)
        path.write_bytes(content)
        os.utime(path, (now, now))
    return rate, pairs, notes


def _read(clip: SetClip) -> tuple[Wave, int]:
    try:
        return load_clip(clip)
    except AudioError as error:
        raise AttuneError(f"clip {clip.uri}: {error}") from error
