"""How fast captions become prompts, against spaCy's pipeline as it comes, called text by text.

    python -m benchmarks.captions --captions train.csv
    python -m benchmarks.captions

The file is AudioCaps' (column `caption`) or any CSV with such a column; without one, captions are
made up from a small grammar, with as many repeated ones as AudioCaps has.
"""

from __future__ import annotations

import csv
import importlib
import random
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from common.cli import run_app
from common.errors import AttuneError
from common.prompts import installed_model, normalize_prompts

ROUNDS = 4
DUPLICATES = 0.0827
"""Share of AudioCaps' training captions that repeat an earlier one (49,838 rows, 45,716 texts)."""


def run(captions_csv: Path | None, n: int) -> dict[str, Any]:
    """Time both on the first `n` captions.

    The two take turns, so that a machine that slows down slows both: in each of `ROUNDS` rounds
    spaCy gets another part of the captions, and `normalize_prompts` all of them.

    Returns:
        source, captions, unique (after normalization of case and blanks), reference_s (spaCy, all
        captions), ours_s (median of the rounds), ratio (reference_s / ours_s).

    Raises:
        AttuneError: the file has no column `caption`, or no rows.
    """
    captions = read_captions(captions_csv)[:n] if captions_csv else make_captions(n, seed=0)
    if not captions:
        raise AttuneError(f"{captions_csv}: no captions in it")
    reference = importlib.import_module(installed_model()[0]).load()
    for text in captions[:20]:
        reference(text)
    normalize_prompts(captions[:20], "lemmas")

    reference_s, ours_s = 0.0, []
    for i in range(ROUNDS):
        start = time.perf_counter()
        for text in captions[i::ROUNDS]:
            " ".join(token.lemma_ for token in reference(text) if not token.is_stop)
        reference_s += time.perf_counter() - start
        start = time.perf_counter()
        normalize_prompts(captions, "lemmas")
        ours_s.append(time.perf_counter() - start)
    return {
        "source": str(captions_csv) if captions_csv else "made up from a grammar",
        "captions": len(captions),
        "unique": len({" ".join(text.lower().split()) for text in captions}),
        "reference_s": reference_s,
        "ours_s": statistics.median(ours_s),
        "ratio": reference_s / statistics.median(ours_s),
    }


def read_captions(path: Path) -> list[str]:
    """The column `caption` of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if "caption" not in (rows.fieldnames or ()):
            raise AttuneError(f"{path}: no column caption")
        return [row["caption"] for row in rows]


_SUBJECTS = ("a man", "a woman", "two dogs", "an engine", "several birds", "a baby", "water",
             "a crowd of people", "some insects", "a vehicle", "a door", "the wind")  # fmt: skip
_VERBS = ("speaks", "is barking", "idles loudly", "chirp", "cries", "trickles", "cheers and claps",
          "buzz", "accelerates", "slams shut", "blows hard", "is talking", "rattles", "hums",
          "taps rhythmically", "squeals", "laughs", "whistles")  # fmt: skip
_LINKS = ("followed by", "as", "while", "and then", "with", "before")
_PLACES = ("", "in the background", "nearby", "in the distance", "at the park", "in a room",
           "on a busy street", "2 times")  # fmt: skip


def make_captions(n: int, seed: int) -> list[str]:
    """`n` captions of one to three clauses, of which `DUPLICATES` repeat an earlier one."""
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
        # Short captions run out: what was made before gets another clause.
        while text in seen:
            text += f" {rng.choice(_LINKS)} {rng.choice(_SUBJECTS)} {rng.choice(_VERBS)}"
        seen.add(text)
        captions.append(text)
    return captions


app = typer.Typer(add_completion=False)


@app.command()
def measure(
    captions: Annotated[Path | None, typer.Option(help="CSV with a column caption.")] = None,
    n: Annotated[int, typer.Option(min=ROUNDS, help="Captions to take.")] = 5000,
) -> None:
    """Print both times and their ratio."""
    result = run(captions, n)
    if captions is None:
        print(f"no --captions: made up from a grammar, {DUPLICATES:.1%} repeated as in AudioCaps")
    print(f"{result['captions']} captions, {result['unique']} different, from {result['source']}")
    print(f"spaCy's pipeline, one by one: {result['reference_s']:8.2f} s")
    print(f"normalize_prompts:            {result['ours_s']:8.2f} s")
    print(f"ratio:                        {result['ratio']:8.2f}")


def main() -> None:
    run_app(app)


if __name__ == "__main__":
    main()
