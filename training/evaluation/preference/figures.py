"""The results of a study: figures, the paper's Table 4, answers as CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import AttuneError
from training.evaluation.preference.answers import Answer
from training.evaluation.preference.study import Showing, Side, Study
from training.evaluation.statistics import (
    fleiss_kappa,
    majorities,
    share,
    share_by_prompt,
    sign_test,
)

PAPER = {"music": (48, 52), "sound effects": (33, 67)}
"""Table 4 of Shi et al. (2023): percent of answers without and with representation regularization.
20 prompts, 8 raters."""
_COLUMNS = (
    "rater", "position", "prompt", "seed", "left", "right", "choice", "preferred", "comment",
    "answered_at",
)  # fmt: skip


def find_figures(study: Study, answers: Sequence[Answer]) -> dict[str, Any]:
    """Compute the content of `report.json`."""
    showings = [showing_of(study, answer) for answer in answers]
    rater, pair = (np.array([getattr(a, name) for a in answers]) for name in ("rater", "pair"))
    left = np.array([answer.choice == "left" for answer in answers])
    for_a = left == np.array([showing.a_left for showing in showings])
    counts = np.zeros((len(study.pairs), 2), np.int64)
    np.add.at(counts, (pair, 1 - for_a), 1)
    by_prompt = _by_prompt(study, counts)
    n, hits = len(answers), int(for_a.sum())
    raters = []
    for i in range(len(study.raters)):
        done, a, lefts = (int((rater == i)[which].sum()) for which in (slice(None), for_a, left))
        p_left = sign_test(lefts, done - lefts) if done else None
        raters.append(
            {
                "rater": i + 1,
                "answers": done,
                "a": a,
                "b": done - a,
                "left": lefts,
                "p_left": p_left,
            }
        )
    prompts = [
        {"prompt": about.prompt, "seed": about.seed, "pair": i, "a": int(a), "b": int(b)}
        for i, (about, (a, b)) in enumerate(zip(study.pairs, counts, strict=True))
    ]
    figures: dict[str, Any] = {
        "a": study.a.name,
        "b": study.b.name,
        "created": study.created,
        "answers": n,
        "answers_of_a_finished_study": study.answers,
        "preference": {"a": asdict(share(hits, n)), "b": asdict(share(n - hits, n))},
        "by_prompt": {"a": share_by_prompt(by_prompt), "b": share_by_prompt(by_prompt[:, ::-1])},
        "majorities": majorities(by_prompt),
        "agreement": asdict(fleiss_kappa(counts)),
        "sides": {
            "left_chosen": asdict(share(int(left.sum()), n)),
            "a_was_left": sum(showing.a_left for showing in showings),
        },
        # The clearest preference for A first, the clearest for B last.
        "prompts": sorted(prompts, key=lambda row: row["b"] - row["a"]),
        "raters": raters,
    }
    return figures | {"table_4": table_4(figures)}


def _by_prompt(study: Study, counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Add up the answers of pairs with the same prompt, because they are not independent."""
    prompts = list(dict.fromkeys(pair.prompt for pair in study.pairs))
    found = np.zeros((len(prompts), 2), np.int64)
    np.add.at(found, [prompts.index(pair.prompt) for pair in study.pairs], counts)
    return found


def table_4(figures: dict[str, Any]) -> str:
    """The paper's Table 4 as Markdown, with a row of this study.

    B is in the paper's column "without representation regularization", A in "with".
    """
    cells = []
    for side in ("b", "a"):
        name = " ".join(figures[side].split()).replace("\\", "\\\\").replace("|", "\\|")
        cells.append(f"{name}: {100 * figures['preference'][side]['share']:.0f}%")
    rows = [
        "| listening test | without rr | with rr |",
        "|---|---:|---:|",
        *(f"| {name}, Shi et al. | {a}% | {b}% |" for name, (a, b) in PAPER.items()),
        f"| this study, {figures['answers']} answers | {cells[0]} | {cells[1]} |",
    ]
    return "\n".join(rows)


def write_csv(path: Path, study: Study, answers: Sequence[Answer]) -> None:
    """Write a row per answer.  Text that a spreadsheet would run as a formula gets a ' in front."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for answer in answers:
            showing, pair = showing_of(study, answer), study.pairs[answer.pair]
            position = study.raters[answer.rater].showings.index(showing) + 1
            sides: tuple[Side, ...] = ("left", "right", answer.choice)
            left, right, preferred = (
                study.a.name if showing.model(side) == "a" else study.b.name for side in sides
            )
            row = (
                answer.rater + 1, position, pair.prompt, pair.seed, left, right, answer.choice,
                preferred, answer.comment, answer.answered_at,
            )  # fmt: skip
            writer.writerow([harmless(cell) for cell in row])


def harmless(cell: Any) -> Any:
    """Change a cell so that no spreadsheet runs it."""
    if isinstance(cell, str) and cell.lstrip(" \n").startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{cell}"
    return cell


def showing_of(study: Study, answer: Answer) -> Showing:
    """How the rater of an answer heard the pair.

    Raises:
        AttuneError: the study has no such rater or pair.
    """
    try:
        showings = study.raters[answer.rater].showings
        return next(showing for showing in showings if showing.pair == answer.pair)
    except (IndexError, StopIteration):
        raise AttuneError(
            f"answers.sqlite: rater {answer.rater + 1} answered pair {answer.pair}, which "
            "study.json does not have"
        ) from None
