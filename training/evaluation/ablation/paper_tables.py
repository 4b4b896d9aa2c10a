"""Tables 1 to 3 of what the cells came to, beside the paper's: Markdown, LaTeX, CSV, a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from common.page import COLOURS
from training.evaluation.ablation.config import AblationConfig, Figures, Profile, Row
from training.evaluation.ablation.statistics import (
    PairedTest,
    Summary,
    holm,
    paired_test,
    summarize,
)


@dataclass(frozen=True)
class Metric:
    """A column."""

    key: str
    """In a cell's `metrics`."""
    title: str
    higher: bool = False
    """Is better."""
    digits: int = 2

    @property
    def arrow(self) -> str:
        return "↑" if self.higher else "↓"


_METRICS = (
    Metric("clap", "CLAP", higher=True, digits=3),
    Metric("fad_codec", "FAD, codec latents"),
    Metric("fd_mel", "mel statistics", digits=1),
    Metric("agreement", "prompt agreement", higher=True, digits=3),
)
METRICS = {
    "sfx": (Metric("fad_vggish", "FAD"), Metric("kl_passt_10s", "KL"), *_METRICS),
    "music": (Metric("fad_vggish", "FAD"), Metric("kl_passt_20s", "KL"), *_METRICS),
}
"""By task, the paper's three and those that need no download.  KL by the windows that AudioGen and
MusicGen report."""
_PAPER = ("fad", "kl", "clap")
LEVEL = 0.05
"""Of a test: below it a difference counts."""
NONE = "\u2013"
"""In place of a figure that there is not."""


@dataclass(frozen=True)
class Table:
    """A table before it is Markdown or LaTeX."""

    number: int
    title: str
    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Results:
    """All figures of a profile: {row: {metric: {seed: value}}}."""

    config: AblationConfig
    profile: Profile
    values: dict[str, dict[str, dict[int, float]]]

    @classmethod
    def of(
        cls, config: AblationConfig, profile: Profile, cells: Sequence[Mapping[str, Any]]
    ) -> Results:
        """
        Args:
            cells: documents of `run_cell`.
        """
        values: dict[str, dict[str, dict[int, float]]] = {}
        for cell in cells:
            for metric, value in cell["metrics"].items():
                values.setdefault(cell["row"], {}).setdefault(metric, {})[cell["seed"]] = value
        return cls(config, profile, values)

    @property
    def columns(self) -> tuple[Metric, ...]:
        """Of the tables, with figures or without."""
        return METRICS[self.profile.task]

    def summary(self, row: str, metric: str) -> Summary | None:
        """Over the seeds that all rows have; further ones count in the test alone."""
        found = self.values.get(row, {}).get(metric, {})
        kept = [found[seed] for seed in self.profile.seeds if seed in found]
        return summarize(kept) if kept else None

    def metrics(self) -> list[Metric]:
        """The paper's columns, and of the others those that have a figure."""
        there = {name for row in self.values.values() for name in row}
        return [m for i, m in enumerate(self.columns) if i < len(_PAPER) or m.key in there]

    def tests(self) -> dict[str, PairedTest]:
        """The regularized row minus the baseline, by metric, all seeds of both."""
        one, other = (
            self.values.get(name, {}) for name in (self.config.regularized, self.config.baseline)
        )
        found = {}
        for metric in self.columns:
            test = paired_test(one.get(metric.key, {}), other.get(metric.key, {}))
            if test is not None:
                found[metric.key] = test
        adjusted = holm({key: t.p_value for key, t in found.items() if t.p_value is not None})
        return {key: replace(test, adjusted=adjusted.get(key)) for key, test in found.items()}


def tables(results: Results) -> list[Table]:
    """Tables 1 and 3 for sound effects, Table 2 for music."""
    config, rows = results.config, results.config.rows_of(results.profile)
    if results.profile.task == "music":
        return [_compared(results, 2, "Music")]
    metrics = results.metrics()
    header = ["pool", "CFG", "λ", *(f"{m.title} {m.arrow}" for m in metrics)]
    header += [f"paper: {m.title} {m.arrow}" for m in results.columns[: len(_PAPER)]]
    body = [
        [*_setting(row), *(_cell(results, row.name, m) for m in metrics), *_paper(row.paper)]
        for row in rows
    ]
    names = {row.name for row in rows}
    first = Table(1, "Ablation", header, body)
    both = {config.regularized, config.baseline} <= names
    return [first, _compared(results, 3, "Sound effects")] if both else [first]


def _compared(results: Results, number: int, title: str) -> Table:
    config, metrics = results.config, results.metrics()
    header = ["method", *(f"{m.title} {m.arrow}" for m in metrics)]
    shown = [m.key for m in metrics]
    body = [
        [f"{other.name} (paper)", *(_published(results, other.figures, key) for key in shown)]
        for other in config.published
        if other.task == results.profile.task
    ]
    for name, label in ((config.baseline, "w/o rr"), (config.regularized, "w/ rr")):
        row = next(row for row in config.rows if row.name == name)
        if results.profile.task == "sfx" and row.paper is not None:
            paper = [_published(results, row.paper, key) for key in shown]
            body.append([f"300M {label} (paper)", *paper])
    for name, label in ((config.baseline, "w/o rr"), (config.regularized, "w/ rr")):
        body.append([f"ours {label}", *(_cell(results, name, m) for m in metrics)])
    return Table(number, title, header, body)


def _setting(row: Row) -> list[str]:
    pool = "-" if row.pool == "none" else row.pool
    return [f"{pool} ({row.note})" if row.note else pool, f"{row.cfg:g}", f"{row.weight:g}"]


def _cell(results: Results, row: str, metric: Metric) -> str:
    found = results.summary(row, metric.key)
    if found is None:
        return NONE
    mean = f"{found.mean:.{metric.digits}f}"
    return mean if found.sd is None else f"{mean} ± {found.sd:.{metric.digits}f}"


def _paper(figures: Figures | None) -> list[str]:
    values = [None if figures is None else getattr(figures, name) for name in _PAPER]
    return [NONE if value is None else f"{value:.2f}" for value in values]


def _published(results: Results, figures: Figures, key: str) -> str:
    names = {metric.key: name for metric, name in zip(results.columns, _PAPER, strict=False)}
    return _paper(figures)[_PAPER.index(names[key])] if key in names else NONE


def verdicts(results: Results) -> list[str]:
    """A sentence per metric: did rr help?"""
    lines = []
    for metric in results.columns:
        test = results.tests().get(metric.key)
        if test is None:
            continue
        size = f"{test.difference:+.{metric.digits + 1}f}"
        if test.p_value is None or test.low is None or test.high is None:
            lines.append(f"{metric.title}: {size}, {test.n} seed(s): too few for a test")
            continue
        better = (test.difference > 0) is metric.higher
        what = "better" if better else "worse"
        verdict = f"rr is {what}" if test.p_value < LEVEL else "no more than seeds differ"
        if test.p_value < LEVEL <= (test.adjusted or 0.0):
            verdict += " by this test alone, not among all metrics"
        lines.append(
            f"{metric.title}: {size} [{test.low:+.{metric.digits + 1}f}, "
            f"{test.high:+.{metric.digits + 1}f}], p = {test.p_value:.2g} "
            f"(Holm {test.adjusted:.2g}), {test.n} seeds: {verdict}"
        )
    return lines


def markdown(table: Table) -> str:
    """With a heading."""
    lines = [f"**Table {table.number}. {table.title}**", "", _line(table.header)]
    lines.append(_line(["---"] * len(table.header)))
    return "\n".join([*lines, *map(_line, table.rows)]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "λ": r"$\lambda$", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "\u2013": "--",
}  # fmt: skip


def latex(table: Table) -> str:
    """A `table*` of its own, for booktabs."""
    columns = len(table.header)
    firsts = 3 if table.number == 1 else 1
    body = [" & ".join(map(_tex, row)) + r" \\" for row in (table.header, *table.rows)]
    return "\n".join(
        [
            r"\begin{table*}",
            r"\centering",
            rf"\begin{{tabular}}{{{'l' * firsts}{'r' * (columns - firsts)}}}",
            r"\toprule", body[0], r"\midrule", *body[1:], r"\bottomrule",
            r"\end{tabular}",
            rf"\caption{{{_tex(table.title)}}}",
            r"\end{table*}",
        ]
    ) + "\n"  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def as_csv(results: Results) -> str:
    """A line per row, seed and metric."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["row", "pool", "cfg", "lambda", "loss", "apply", "seed", "metric", "value"])
    for row in results.config.rows_of(results.profile):
        about = [row.name, row.pool, row.cfg, row.weight, row.loss, row.apply]
        for metric, values in sorted(results.values.get(row.name, {}).items()):
            writer.writerows(
                [*about, seed, metric, value] for seed, value in sorted(values.items())
            )
    return out.getvalue()


def plot(results: Results) -> Figure | None:
    """A panel per metric: every seed a dot, means and standard deviations, the baseline's mean as a
    line; None without figures."""
    rows = results.config.rows_of(results.profile)
    there = [m for m in results.columns if any(results.summary(row.name, m.key) for row in rows)]
    if not there:
        return None
    labels = [" ".join(_setting(row)) for row in rows]
    drawn, axes = plt.subplots(
        1, len(there), figsize=(2.6 + 3.0 * len(there), 1.2 + 0.34 * len(rows)), sharey=True,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for axis, metric in zip(axes[0], there, strict=True):
        baseline = results.summary(results.config.baseline, metric.key)
        if baseline is not None:
            axis.axvline(baseline.mean, color="#888888", linewidth=1, linestyle="--")
        for place, row in enumerate(rows):
            found = results.summary(row.name, metric.key)
            if found is None:
                continue
            tested = row.name in (results.config.regularized, results.config.baseline)
            colour = COLOURS[1] if tested else COLOURS[0]
            axis.plot(found.values, [place] * len(found.values), "o", ms=3.5, alpha=0.45, c=colour)
            axis.errorbar(found.mean, place, xerr=found.sd, fmt="D", ms=5, c=colour, capsize=3)
        axis.set(xlabel=f"{metric.title} ({'higher' if metric.higher else 'lower'} is better)")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="x", alpha=0.25)
    axes[0][0].set_yticks(range(len(rows)), labels)
    axes[0][0].set_ylabel("pool, CFG, λ")
    axes[0][0].invert_yaxis()
    return drawn
