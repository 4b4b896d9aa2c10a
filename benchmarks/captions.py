"""How fast captions become prompts, against spaCy's default pipeline, one text at a time.

The captions are made from a small grammar. As many of them are repeated as in AudioCaps.
"""

from __future__ import annotations

import importlib
import random
import statistics
from functools import partial

from benchmarks.measure import Result, seconds
from common.prompts import PromptForm, normalize_prompts
from common.spacy_words import installed_model

CAPTIONS = 5000
ROUNDS = 4
DUPLICATES = 0.0827
"""Share of AudioCaps' training captions that repeat an earlier one (49,838 rows, 45,716 texts)."""


def bench() -> Result:
    """Captions to prompts. In each of `ROUNDS` turns spaCy gets another part of the captions and
    `normalize_prompts` gets all of them, so a machine that slows down slows both."""
    captions = make_captions(CAPTIONS, seed=0)
    reference = importlib.import_module(installed_model()[0]).load()

    def by_spacy(texts: list[str]) -> None:
        for text in texts:
            " ".join(token.lemma_ for token in reference(text) if not token.is_stop)

    by_spacy(captions[:20])
    normalize_prompts(captions[:20], PromptForm("lemmas"))
    reference_s, ours_s = 0.0, []
    for i in range(ROUNDS):
        reference_s += seconds(partial(by_spacy, captions[i::ROUNDS]))
        ours_s.append(seconds(partial(normalize_prompts, captions, PromptForm("lemmas"))))
    ours = statistics.median(ours_s)
    found = {
        "captions": CAPTIONS,
        "unique": len({" ".join(text.lower().split()) for text in captions}),
        "reference_s": reference_s,
        "ours_s": ours,
        "ratio": reference_s / ours,
    }
    title = "spaCy one text at a time / prompts from captions"
    return found, [(title, f"{found['ratio']:.2f}", "at least 4")]


_SUBJECTS = ("a man", "a woman", "two dogs", "an engine", "several birds", "a baby", "water",
             "a crowd of people", "some insects", "a vehicle", "a door", "the wind")  # fmt: skip
_VERBS = ("speaks", "is barking", "idles loudly", "chirp", "cries", "trickles", "cheers and claps",
          "buzz", "accelerates", "slams shut", "blows hard", "is talking", "rattles", "hums",
          "taps rhythmically", "squeals", "laughs", "whistles")  # fmt: skip
_LINKS = ("followed by", "as", "while", "and then", "with", "before")
_PLACES = ("", "in the background", "nearby", "in the distance", "at the park", "in a room",
           "on a busy street", "2 times")  # fmt: skip


def make_captions(n: int, seed: int) -> list[str]:
    """`n` captions of one to three clauses, a share `DUPLICATES` of them repeated."""
    rng = random.Random(seed)
    captions: list[str] = []
    seen: set[str] = set()
    while len(captions) < n:
        if captions and rng.random() < DUPLICATES:
            captions.append(rng.choice(captions))
            continue
        clauses = [
            " ".join(filter(None, map(rng.choice, (_SUBJECTS, _VERBS, _PLACES))))
            for _ in range(rng.choice((1, 2, 2, 2, 3, 3)))
        ]
        text = f" {rng.choice(_LINKS)} ".join(clauses).capitalize()
        # Short captions run out: a caption that exists already gets another clause.
        while text in seen:
            text += f" {rng.choice(_LINKS)} {rng.choice(_SUBJECTS)} {rng.choice(_VERBS)}"
        seen.add(text)
        captions.append(text)
    return captions
