"""The report of a study as a page: shares, agreement of raters, every prompt with both clips."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import soundfile
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common import page
from common.errors import AttuneError
from training.evaluation.preference.answers import Answer, Answers
from training.evaluation.preference.figures import PAPER, find_figures, showing_of, write_csv
from training.evaluation.preference.study import Study, clip_path, read_study

HEARD = 100
"""Number of prompts shown with their clips; the CSV has every answer."""
_A, _B = page.COLOURS[0], page.COLOURS[1]
_TALLEST = 30.0
"""Maximum height of a plot, inches."""


def build_page(
    folder: Path,
    study: Study,
    answers: Sequence[Answer],
    figures: dict[str, Any],
    drawn: dict[str, Figure],
) -> str:
    """The page as HTML.

    Args:
        folder: folder of the study.
        figures: content of `report.json`.
        drawn: {file name: plot}; the plots are closed here.
    """
    header, _, *rows = (
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in figures["table_4"].splitlines()
    )
    return page.render(
        __package__,
        "page.html",
        study=study,
        figures=figures,
        share=page.picture(drawn["preference.png"]),
        by_prompt=page.picture(drawn["prompts.png"]),
        table_4=(header, rows),
        prompts=[_heard(folder, study, row) for row in figures["prompts"][:HEARD]],
        comments=_comments(study, answers),
        sources=_sources(study),
    )


def _draw_share(found: dict[str, Any], answers: int) -> Figure:
    """The share of A, next to the paper's shares."""
    share = 100 * found["share"]
    ends = [share if found[name] is None else 100 * found[name] for name in ("low", "high")]
    drawn, axis = plt.subplots(figsize=(5.2, 2.6), layout="constrained")
    axis.axvline(50, color="#666", linewidth=1, linestyle="--", zorder=0)
    axis.errorbar(
        share, 0, xerr=[[share - ends[0]], [ends[1] - share]], fmt="o", color=_A, capsize=5,
        markersize=8,
    )  # fmt: skip
    labels = [f"this study\n({answers} answers,\n{found['prompts']} prompts)"]
    for mark, (name, (_, with_rr)) in zip("Ds", PAPER.items(), strict=True):
        axis.plot(with_rr, len(labels), mark, color="#444", markersize=7)
        labels.append(f"Shi et al.,\n{name}")
    axis.set_yticks(range(len(labels)), labels)
    axis.set(
        xlim=(0, 100),
        ylim=(len(labels) - 0.5, -0.5),
        xlabel="answers that prefer A, %, with 95% interval",
    )
    axis.grid(axis="x", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    return drawn


def _draw_prompts(rows: Sequence[dict[str, Any]]) -> Figure:
    """The number of answers for A and for B, by prompt."""
    height = min(_TALLEST, 1.2 + 0.2 * max(len(rows), 4))
    drawn, axis = plt.subplots(figsize=(5.2, height), layout="constrained")
    numbers = np.arange(1, len(rows) + 1)
    for_a, for_b = (np.array([row[side] for row in rows]) for side in ("a", "b"))
    axis.barh(numbers, for_a, color=_A, label="prefer A")
    axis.barh(numbers, for_b, left=for_a, color=_B, hatch="//", edgecolor="white", label="prefer B")
    axis.set_ylim(len(rows) + 0.7, 0.3)
    step = -(-len(rows) // 60)
    axis.set_yticks(numbers[::step], [str(number) for number in numbers[::step]], fontsize=8)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(xlabel="answers", ylabel="prompt (number below)")
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return drawn


def _heard(folder: Path, study: Study, row: dict[str, Any]) -> tuple[str, list[page.Clip]]:
    """A prompt and the clips of both models."""
    pair, clips = study.pairs[row["pair"]], []
    for side, name in (("A", pair.a), ("B", pair.b)):
        wave, rate = soundfile.read(clip_path(folder, name), dtype="float32")
        clips.append(page.clip(wave, rate, f"{side}: {row[side.lower()]} answers"))
    return pair.prompt + ("" if pair.seed is None else f" (seed {pair.seed})"), clips


def _comments(study: Study, answers: Sequence[Answer]) -> list[tuple[str, str]]:
    """Each comment, with what its rater heard and chose."""
    rows = []
    for answer in answers:
        if answer.comment:
            showing = showing_of(study, answer)
            a_was, b_was = (1, 2) if showing.a_left else (2, 1)
            about = (
                f"{study.pairs[answer.pair].prompt}: rater {answer.rater + 1} chose "
                f"{showing.model(answer.choice).upper()} (A was sound {a_was}, B sound {b_was})"
            )
            rows.append((about, answer.comment))
    return rows


def _sources(study: Study) -> dict[str, Any]:
    """Facts of the clips that differ between the models, and facts that are the same for both."""
    a, b = ({"clips from": side.clips} | side.facts for side in (study.a, study.b))
    alike = {name: value for name, value in a.items() if name in b and b[name] == value}
    differ = [
        (name, str(a.get(name, "")), str(b.get(name, ""))) for name in a | b if name not in alike
    ]
    return {"differ": differ, "alike": {k: v for k, v in alike.items() if v not in ("", None)}}


def write_report(folder: Path) -> dict[str, Any]:
    """Write `report.html`, `report.json`, `answers.csv` and two plots into `report/`.

    An unfinished study is reported with the answers that it has.

    Returns:
        The content of `report.json`.

    Raises:
        AttuneError: no study, or no answer yet.
    """
    study = read_study(folder)
    database = Answers(folder, study)
    answers = database.all()
    database.close()
    if not answers:
        raise AttuneError(
            f"{folder}: no answers yet; `python -m training preference links {folder}` lists the "
            "links for the raters"
        )
    figures = find_figures(study, answers)
    out = folder / "report"
    try:
        out.mkdir(exist_ok=True)
        write_csv(out / "answers.csv", study, answers)
        drawn = {
            "preference.png": _draw_share(figures["by_prompt"]["a"], figures["answers"]),
            "prompts.png": _draw_prompts(figures["prompts"]),
        }
        for name, figure in drawn.items():
            figure.savefig(out / name, dpi=200)
        (out / "report.json").write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
        html = build_page(folder, study, answers, figures, drawn)
        (out / "report.html").write_text(html, encoding="utf-8")
    except OSError as error:
        raise AttuneError(f"{out}: {error.strerror}") from error
    return figures
