"""Music prompts: a description merged with some of the other fields, after MusicGen.

MusicGen merges fields at random in a quarter of its training steps, and drops words.  Here a few
variants are drawn once, with a seed, so that they can be embedded before training.  The first
variant is the description only.  The paper gives no probabilities; those below are Attune's.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

KEEP_FIELD = 0.5
"""Probability that a field is in a variant."""
DROP_DESCRIPTION = 0.25
"""Probability that a variant has fields only."""


def music_prompts(track: Mapping[str, Any], variants: int, seed: int) -> list[str]:
    """Up to `variants` different texts for one track; the same arguments give the same texts.

    Args:
        track: `sample_id` (hex), `captions`, `tags`, `genre` and `bpm`, as in `Record.as_row`.
    """
    description = track["captions"][0].strip().rstrip(".") if track["captions"] else ""
    fields = {
        "genre": track["genre"] or "",
        "bpm": f"{track['bpm']:g}" if track["bpm"] else "",
        "tags": ", ".join(track["tags"]),
    }
    parts = [f"{name}: {value}" for name, value in fields.items() if value]
    rng = random.Random(f"{seed}:{track['sample_id']}")
    texts = [description or ". ".join(parts)]
    for _ in range(variants - 1):
        chosen = [part for part in rng.sample(parts, len(parts)) if rng.random() < KEEP_FIELD]
        without = bool(chosen) and rng.random() < DROP_DESCRIPTION
        texts.append(". ".join([*([] if without or not description else [description]), *chosen]))
    return list(dict.fromkeys(text for text in texts if text))
