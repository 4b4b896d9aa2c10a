"""The report's page: shares, whether they can be trusted, every prompt with both clips to hear."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import soundfile
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.errors import AttuneError
from common.page import legend
from training.evaluation import page
from training.evaluation.preference.answers import Answer, Answers
from training.evaluation.preference.figures import PAPER, find_figures, write_csv
from training.evaluation.preference.study import Study, clip_path, read_study

HEARD = 100
"""Prompts shown with their clips; the CSV has every answer."""
_A, _B = page.COLOURS[0], page.COLOURS[1]
_PAPER_MARKS = ("D", "s")
_TALLEST = 30.0
"""Inches of the plot."""


def write_page(
    path: Path,
    folder: Path,
    study: Study,
    answers: Sequence[Answer],
    figures: dict[str, Any],
    drawn: dict[str, Figure],
) -> None:
    """Write the page.

    Args:
        folder: of the study.
        figures: the content of `report.json`.
        drawn: what `plots` gives; closed here.
    """
    sections = [
        _summary(figures),
        _preference(figures, drawn),
        _table_4(figures),
        _trust(figures),
        _prompts(folder, study, figures),
        _comments(study, answers),
        _sources(study),
    ]
    path.write_text(
        page.page(
            f"Attune: {study.a.name} or {study.b.name}?",
            f"Raters heard a clip of each model for the same prompt, did not know which was which, "
            f"and said which has better quality and matches the prompt better. "
            f"{figures['answers']} of {study.answers} answers ({len(study.pairs)} prompts, "
            f"{len(study.raters)} raters).",
            [section for section in sections if section],
            f"Prepared {study.created[:10]} by `python -m training preference prepare`, seed "
            f"{study.seed}. Players hold MP3 copies; raters heard the wav files in clips/.",
        ),
        encoding="utf-8",
    )


def plots(figures: dict[str, Any]) -> dict[str, Figure]:
    """The share of A beside the paper's, and answers by prompt: {file name: figure}."""
    return {
        "preference.png": _draw_share(figures["by_prompt"]["a"], figures["answers"]),
        "prompts.png": _draw_prompts(figures["prompts"]),
    }


def _draw_share(found: dict[str, Any], answers: int) -> Figure:
    share = 100 * found["share"]
    ends = [share if found[name] is None else 100 * found[name] for name in ("low", "high")]
    drawn, axis = plt.subplots(figsize=(5.2, 2.6), layout="constrained")
    axis.axvline(50, color="#666", linewidth=1, linestyle="--", zorder=0)
    axis.errorbar(
        share, 0, xerr=[[share - ends[0]], [ends[1] - share]], fmt="o", color=_A, capsize=5,
        markersize=8,
    )  # fmt: skip
    labels = [f"this study\n({answers} answers,\n{found['prompts']} prompts)"]
    for mark, (name, (_, with_rr)) in zip(_PAPER_MARKS, PAPER.items(), strict=True):
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


def _percent(found: dict[str, Any]) -> str:
    if found["low"] is None:
        return f"{found['share']:.1%}"
    return f"{found['share']:.1%} [{found['low']:.1%}, {found['high']:.1%}]"


def _p(value: float) -> str:
    return "p < 0.0001" if value < 1e-4 else f"p = {value:.2g}"


def _summary(figures: dict[str, Any]) -> str:
    kappa = figures["agreement"]["value"]
    return page.key_figures(
        {
            f"prefer A: {figures['a']}": f"{figures['preference']['a']['share']:.0%}",
            f"prefer B: {figures['b']}": f"{figures['preference']['b']['share']:.0%}",
            "one vote per prompt, sign test": _p(figures["majorities"]["p_value"]),
            "Fleiss' kappa of the raters": "undefined" if kappa is None else f"{kappa:.2f}",
        }
    )


def _preference(figures: dict[str, Any], drawn: dict[str, Figure]) -> str:
    found, by_prompt, votes = (figures[k] for k in ("preference", "by_prompt", "majorities"))
    rows = [
        (
            f"{side.upper()}: {figures[side]}",
            found[side]["hits"],
            _percent(by_prompt[side]),
            _percent(found[side]),
        )
        for side in ("a", "b")
    ]
    noise = votes["p_value"] >= 0.05
    undrawn = by_prompt["a"]["low"] is None
    header = ("model", "answers", "share, with 95% interval", "if answers were independent")
    return page.section(
        "Which one is preferred?",
        page.table(header, rows),
        page.paragraph(
            f"With one vote per prompt, most raters prefer A for {votes['a']} prompts, B for "
            f"{votes['b']}, and {votes['tied']} are tied; two-sided sign test "
            f"{_p(votes['p_value'])}. "
            + ("That is no more than noise. " if noise else "That is more than noise. ")
            + (
                "There is no interval: all prompts have the same share, so none can be drawn."
                if undrawn
                else "The interval is a bootstrap over prompts."
            )
        ),
        page.paragraph(
            f"Against one half over all answers, two-sided exact binomial test: "
            f"{_p(found['a']['p_value'])}; the last column has Clopper and Pearson's intervals. "
            "Both take every answer for a draw of its own, which answers to one prompt, or of one "
            "rater, are not: where they go together, interval and p are too small, so nothing is "
            "concluded from them."
        ),
        legend([f"A: {figures['a']}", f"B: {figures['b']}"]),
        '<div class="plots">',
        page.figure(drawn["preference.png"], "Share of answers that prefer A, with its interval"),
        page.figure(drawn["prompts.png"], "Answers that prefer A and B, by prompt"),
        "</div>",
    )


def _table_4(figures: dict[str, Any]) -> str:
    header, _, *rows = (
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in figures["table_4"].splitlines()
    )
    return page.section(
        "Beside Table 4 of the paper",
        page.table(header, rows),
        page.paragraph(
            "A stands where the paper has the model with representation regularization, B where "
            "it has the one without. As Markdown:"
        ),
        f'<div class="scroll"><pre>{escape(figures["table_4"])}</pre></div>',
    )


def _trust(figures: dict[str, Any]) -> str:
    agreement, left = figures["agreement"], figures["sides"]["left_chosen"]
    if agreement["value"] is None:
        told = f"Fleiss' kappa is undefined: {agreement['why']}."
    else:
        told = (
            f"Two raters of a pair agree {agreement['observed']:.1%} of the time, where chance "
            f"would give {agreement['chance']:.1%}: Fleiss' kappa {agreement['value']:.2f} over "
            f"{agreement['prompts']} pairs (1: always, 0: as by chance)."
        )
    rows = [
        (
            str(row["rater"]),
            row["answers"],
            row["a"],
            row["b"],
            row["left"],
            "" if row["p_left"] is None else f"{row['p_left']:.2g}",
        )
        for row in figures["raters"]
    ]
    biased = left["p_value"] < 0.05
    return page.section(
        "Can the answers be trusted?",
        page.paragraph(told),
        page.paragraph(
            f"A was on the left in {figures['sides']['a_was_left']} of {figures['answers']} "
            f"answers. Raters chose the left {_percent(left)} of the time, {_p(left['p_value'])}: "
            + ("they lean to one side. " if biased else "no leaning to one side that shows. ")
            + "Sides are balanced, so a leaning makes the two models more alike, not one of "
            "them better."
        ),
        page.table(("rater", "answers", "for A", "for B", "left", "p of left"), rows),
    )


def _prompts(folder: Path, study: Study, figures: dict[str, Any]) -> str:
    cards = []
    for number, row in enumerate(figures["prompts"][:HEARD], 1):
        pair = study.pairs[row["pair"]]
        clips = []
        for side, name in (("A", pair.a), ("B", pair.b)):
            wave, rate = soundfile.read(clip_path(folder, name), dtype="float32")
            clips.append(page.clip(wave, rate, f"{side}: {row[side.lower()]} answers"))
        seed = "" if pair.seed is None else f" (seed {pair.seed})"
        cards.append(
            f"<div><h4>{number}. {escape(pair.prompt + seed)}</h4>{clips[0]}<br>{clips[1]}</div>"
        )
    more = len(figures["prompts"]) - len(cards)
    return page.section(
        "Every prompt, the clearest for A first",
        page.paragraph(
            "As raters heard them: one rate, one length, one loudness in each pair."
            + (f" {more} more prompts are in report.json." if more else "")
        ),
        f'<div class="clips">{"".join(cards)}</div>',
    )


def _comments(study: Study, answers: Sequence[Answer]) -> str:
    rows = []
    for answer in answers:
        if answer.comment:
            showings = study.raters[answer.rater].showings
            showing = next(showing for showing in showings if showing.pair == answer.pair)
            a_was, b_was = (1, 2) if showing.a_left else (2, 1)
            about = (
                f"{study.pairs[answer.pair].prompt}: rater {answer.rater + 1} chose "
                f"{showing.model(answer.choice).upper()} (A was sound {a_was}, B sound {b_was})"
            )
            rows.append((about, answer.comment))
    return page.section("Comments", page.table(("answer", "comment"), rows)) if rows else ""


def _sources(study: Study) -> str:
    a, b = ({"clips from": side.clips} | side.facts for side in (study.a, study.b))
    alike = [name for name in a if name in b and a[name] == b[name]]
    rows = [
        (name, str(a.get(name, "")), str(b.get(name, "")))
        for name in dict.fromkeys([*a, *b])
        if name not in alike
    ]
    parts = [page.table(("what", f"A: {study.a.name}", f"B: {study.b.name}"), rows)]
    if alike:
        told = "; ".join(f"{name} {a[name]}" for name in alike if a[name] not in ("", None))
        parts.append(page.paragraph(f"The same for both: {told}."))
    return page.section(
        "How the clips were made",
        page.paragraph("What the files beside all clips of a model say alike."),
        *parts,
    )


def write_report(folder: Path) -> dict[str, Any]:
    """Write `report.html`, `report.json`, `answers.csv` and two plots into `report/`.

    A study that is not finished is reported as it stands.

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
        raise AttuneError(f"{folder}: no answers yet; `preference links {folder}` lists the links")
    figures = find_figures(study, answers)
    out = folder / "report"
    try:
        out.mkdir(exist_ok=True)
        write_csv(out / "answers.csv", study, answers)
        drawn = plots(figures)
        for name, figure in drawn.items():
            figure.savefig(out / name, dpi=200)
        (out / "report.json").write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
        write_page(out / "report.html", folder, study, answers, figures, drawn)
    except OSError as error:
        raise AttuneError(f"{out}: {error.strerror}") from error
    return figures
