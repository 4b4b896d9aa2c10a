"""Music prompts: a description merged with some of the other fields, after MusicGen.

MusicGen merges fields at random in a quarter of its training steps, and drops words.  Here a few
variants are drawn once, with a seed, so that they can be embedded before training.  The first
texts are the descriptions only.  The paper gives no probabilities; those below are Attune's.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from itertools import cycle
from typing import Any

KEEP_FIELD = 0.5
"""Probability that a field is in a variant."""
DROP_DESCRIPTION = 0.25
"""Probability that a variant has fields only."""


def music_prompts(track: Mapping[str, Any], variants: int, seed: int) -> list[str]:
    """All descriptions of a track, and up to `variants - 1` other texts that take them in turn.

    The same arguments give the same texts, each once.

    Args:
        track: `sample_id` (hex), `captions`, `tags`, `genre` and `bpm`, as in `Record.as_row`.
    """
    descriptions = [found for one in track["captions"] if (found := one.strip().rstrip("."))]
    fields = {
        "genre": track["genre"] or "",
        "bpm": f"{track['bpm']:g}" if track["bpm"] else "",
        "tags": ", ".join(track["tags"]),
    }
    parts = [f"{name}: {value}" for name, value in fields.items() if value]
    rng = random.Random(f"{seed}:{track['sample_id']}")
    texts = descriptions or [". ".join(parts)]
    for _, description in zip(range(variants - 1), cycle(descriptions or [""]), strict=False):
        chosen = [part for part in rng.sample(parts, len(parts)) if rng.random() < KEEP_FIELD]
        without = bool(chosen) and rng.random() < DROP_DESCRIPTION
        texts = [*texts, ". ".join(filter(None, ["" if without else description, *chosen]))]
    return list(dict.fromkeys(text for text in texts if text))
