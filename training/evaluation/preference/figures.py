"""What a study found: figures, answers as CSV, a plot, and a page with its clips to hear."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import AttuneError
from training.evaluation.preference.answers import Answer
from training.evaluation.preference.statistics import (
    fleiss_kappa,
    majorities,
    share,
    share_by_prompt,
)
from training.evaluation.preference.study import Model, Showing, Study

PAPER = {"music": (48, 52), "sound effects": (33, 67)}
"""Table 4 of Shi et al. (2023): percent of answers without and with representation regularization.
20 prompts, 8 raters."""
_COLUMNS = (
    "rater", "position", "prompt", "seed", "left", "right", "choice", "preferred", "comment",
    "answered_at",
)  # fmt: skip


def find_figures(study: Study, answers: Sequence[Answer]) -> dict[str, Any]:
    """Everything that the report says, as numbers."""
    preferred = [_preferred(study, answer) for answer in answers]
    counts = np.zeros((len(study.pairs), 2), np.int64)
    for answer, model in zip(answers, preferred, strict=True):
        counts[answer.pair, "ab".index(model)] += 1
    by_prompt = _by_prompt(study, counts)
    n = len(answers)
    for_a, left = preferred.count("a"), sum(answer.choice == "left" for answer in answers)
    figures: dict[str, Any] = {
        "a": study.a.name,
        "b": study.b.name,
        "created": study.created,
        "answers": n,
        "answers_of_a_finished_study": study.answers,
        "preference": {"a": asdict(share(for_a, n)), "b": asdict(share(n - for_a, n))},
        "by_prompt": {
            "a": asdict(share_by_prompt(by_prompt)),
            "b": asdict(share_by_prompt(by_prompt[:, ::-1])),
        },
        "majorities": asdict(majorities(by_prompt)),
        "agreement": asdict(fleiss_kappa(counts)),
        "sides": {
            "left_chosen": asdict(share(left, n)),
            "a_was_left": sum(_showing(study, answer).a_left for answer in answers),
        },
        "prompts": [
            {
                "prompt": pair.prompt,
                "seed": pair.seed,
                "pair": i,
                "a": int(a),
                "b": int(b),
            }
            for i, (pair, (a, b)) in enumerate(zip(study.pairs, counts, strict=True))
        ],
        "raters": _raters(study, answers, preferred),
    }
    # The clearest for A first, the clearest for B last.
    figures["prompts"].sort(key=lambda row: row["b"] - row["a"])
    return figures | {"table_4": table_4(figures)}


def _by_prompt(study: Study, counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Answers of pairs with the same prompt together: they are not independent."""
    prompts = list(dict.fromkeys(pair.prompt for pair in study.pairs))
    found = np.zeros((len(prompts), 2), np.int64)
    np.add.at(found, [prompts.index(pair.prompt) for pair in study.pairs], counts)
    return found


def table_4(figures: dict[str, Any]) -> str:
    """The paper's Table 4 as Markdown, with this study's row: B stands where the paper has the
    model without representation regularization, A where it has the one with it."""
    rows = [
        "| listening test | without rr | with rr |",
        "|---|---:|---:|",
        *(f"| {name}, Shi et al. | {a}% | {b}% |" for name, (a, b) in PAPER.items()),
    ]
    found = figures["preference"]
    names = (_cell(figures[side]) for side in ("b", "a"))
    percent = (f"{100 * found[side]['share']:.0f}%" for side in ("b", "a"))
    cells = " | ".join(f"{name}: {value}" for name, value in zip(names, percent, strict=True))
    rows.append(f"| this study, {figures['answers']} answers | {cells} |")
    return "\n".join(rows)


def write_csv(path: Path, study: Study, answers: Sequence[Answer]) -> None:
    """A row per answer.  Text that a spreadsheet would take for a formula gets a ' before it."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for answer in answers:
            showings = study.raters[answer.rater].showings
            showing, pair = _showing(study, answer), study.pairs[answer.pair]
            row: list[Any] = [answer.rater + 1, showings.index(showing) + 1, pair.prompt, pair.seed]
            row += [_name(study, showing.model("left")), _name(study, showing.model("right"))]
            row += [answer.choice, _name(study, showing.model(answer.choice)), answer.comment]
            writer.writerow([harmless(cell) for cell in [*row, answer.answered_at]])


def harmless(cell: Any) -> Any:
    """A cell that no spreadsheet runs."""
    if isinstance(cell, str) and cell.lstrip(" \n").startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{cell}"
    return cell


def _raters(
    study: Study, answers: Sequence[Answer], preferred: Sequence[Model]
) -> list[dict[str, Any]]:
    done = Counter(answer.rater for answer in answers)
    left = Counter(answer.rater for answer in answers if answer.choice == "left")
    for_a = Counter(
        answer.rater for answer, model in zip(answers, preferred, strict=True) if model == "a"
    )
    return [
        {
            "rater": i + 1,
            "answers": done[i],
            "a": for_a[i],
            "b": done[i] - for_a[i],
            "left": left[i],
            "p_left": share(left[i], done[i]).p_value if done[i] else None,
        }
        for i in range(len(study.raters))
    ]


def _showing(study: Study, answer: Answer) -> Showing:
    try:
        showings = study.raters[answer.rater].showings
        return next(showing for showing in showings if showing.pair == answer.pair)
    except (IndexError, StopIteration):
        raise AttuneError(
            f"answers.sqlite: rater {answer.rater + 1} answered pair {answer.pair}, which "
            "study.json does not have"
        ) from None


def _preferred(study: Study, answer: Answer) -> Model:
    return _showing(study, answer).model(answer.choice)


def _name(study: Study, model: Model) -> str:
    return study.a.name if model == "a" else study.b.name


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")
