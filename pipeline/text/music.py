"""Music prompts: a description merged with some of the other fields, after MusicGen.

MusicGen merges anew at every training step, in a quarter of them, and drops words; here a few
variants are drawn once, with a seed, so that their states can be embedded ahead of time.  The first
variant is the description by itself.  The probabilities below are Attune's; the paper tells none.
"""

from __future__ import annotations

import random

from common.schema import Record

KEEP_FIELD = 0.5
"""Chance of each field to enter a variant."""
DROP_DESCRIPTION = 0.25
"""Chance that a variant is made of fields alone."""


def music_prompts(record: Record, variants: int, seed: int) -> list[str]:
    """Up to `variants` different texts for one track; a function of its arguments alone."""
    description = record.captions[0].strip().rstrip(".") if record.captions else ""
    fields = {
        "genre": record.genre or "",
        "bpm": f"{record.bpm:g}" if record.bpm else "",
        "tags": ", ".join(record.tags),
    }
    parts = [f"{name}: {value}" for name, value in fields.items() if value]
    rng = random.Random(f"{seed}:{record.sample_id}")
    texts = [description or ". ".join(parts)]
    for _ in range(variants - 1):
        chosen = [part for part in rng.sample(parts, len(parts)) if rng.random() < KEEP_FIELD]
        without = bool(chosen) and rng.random() < DROP_DESCRIPTION
        texts.append(". ".join([*([] if without or not description else [description]), *chosen]))
    return list(dict.fromkeys(text for text in texts if text))
