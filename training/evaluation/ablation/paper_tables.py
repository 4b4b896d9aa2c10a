"""Tables 1 to 3 with our results and the paper's: Markdown, LaTeX, CSV, and a plot."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from common.page import COLOURS
from training.evaluation.ablation.config import AblationConfig, Figures, Profile, Row
from training.evaluation.statistics import SeedTest, holm, seed_test


@dataclass(frozen=True)
class Metric:
    """A column of the tables."""

    key: str
    """Name in the `metrics` of a cell."""
    name: str
    higher: bool = False
    """Whether higher is better."""
    digits: int = 2

    @property
    def title(self) -> str:
        return f"{self.name} {'↑' if self.higher else '↓'}"


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
"""{task: the paper's metrics, then metrics without download}.  KL windows are those of AudioGen
(10 s) and MusicGen (20 s)."""
_PAPER = ("fad", "kl", "clap")
LEVEL = 0.05
"""Significance level of the tests."""
NONE = "\u2013"
"""Shown in place of a missing value."""


@dataclass(frozen=True)
class Table:
    """A table, to be written as Markdown or LaTeX."""

    number: int
    title: str
    header: list[str]
    rows: list[list[str]]


class Results:
    """All values of a profile, collected from the documents of `run_cell`."""

    def __init__(
        self, config: AblationConfig, profile: Profile, cells: Sequence[Mapping[str, Any]]
    ) -> None:
        self.config = config
        self.profile = profile
        self.columns = METRICS[profile.task]
        """All metrics of the task, with values or without."""
        self.values: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
        """{row: {metric: {seed: value}}}."""
        for cell in cells:
            for metric, value in cell["metrics"].items():
                self.values[cell["row"]][metric][cell["seed"]] = value

    def of_row(self, row: str, metric: str) -> list[float]:
        """Values of the seeds that all rows have; `more_seeds` are only used in the tests."""
        found = self.values[row][metric]
        return [found[seed] for seed in self.profile.seeds if seed in found]

    def metrics(self) -> list[Metric]:
        """The paper's metrics, and further metrics that have a value."""
        there = {name for row in self.values.values() for name, values in row.items() if values}
        return [m for i, m in enumerate(self.columns) if i < len(_PAPER) or m.key in there]

    def tests(self) -> dict[str, SeedTest]:
        """{metric: the regularized row minus the baseline}, over all seeds that both have."""
        one, other = self.values[self.config.regularized], self.values[self.config.baseline]
        found = {}
        for metric in self.columns:
            if test := seed_test(one[metric.key], other[metric.key]):
                found[metric.key] = test
        adjusted = holm({key: t.p_value for key, t in found.items() if t.p_value is not None})
        return {key: replace(test, adjusted=adjusted.get(key)) for key, test in found.items()}


def tables(results: Results) -> list[Table]:
    """Tables 1 and 3 for sound effects, Table 2 for music."""
    config, rows = results.config, results.config.rows_of(results.profile)
    if results.profile.task == "music":
        return [_compared(results, 2, "Music")]
    metrics = results.metrics()
    header = ["pool", "CFG", "λ", *(m.title for m in metrics)]
    header += [f"paper: {m.title}" for m in results.columns[: len(_PAPER)]]
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
    header = ["method", *(m.title for m in metrics)]
    ours = ((config.baseline, "w/o rr"), (config.regularized, "w/ rr"))
    body = [
        [f"{other.name} (paper)", *_paper(other.figures, len(metrics))]
        for other in config.published
        if other.task == results.profile.task
    ]
    for name, label in ours:
        row = next(row for row in config.rows if row.name == name)
        if results.profile.task == "sfx" and row.paper is not None:
            body.append([f"300M {label} (paper)", *_paper(row.paper, len(metrics))])
    for name, label in ours:
        body.append([f"ours {label}", *(_cell(results, name, m) for m in metrics)])
    return Table(number, title, header, body)


def _setting(row: Row) -> list[str]:
    pool = "-" if row.pool == "none" else row.pool
    return [f"{pool} ({row.note})" if row.note else pool, f"{row.cfg:g}", f"{row.weight:g}"]


def _cell(results: Results, row: str, metric: Metric) -> str:
    """Mean ± standard deviation (unbiased) over the seeds."""
    values = results.of_row(row, metric.key)
    if not values:
        return NONE
    mean = f"{np.mean(values):.{metric.digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{metric.digits}f}" if len(values) > 1 else mean


def _paper(figures: Figures | None, columns: int = len(_PAPER)) -> list[str]:
    """The paper's values, then `NONE` for the columns that the paper does not have."""
    values = [None if figures is None else getattr(figures, name) for name in _PAPER]
    shown = [NONE if value is None else f"{value:.2f}" for value in values]
    return shown + [NONE] * (columns - len(_PAPER))


def verdicts(results: Results) -> list[str]:
    """One line per metric: did rr help?"""
    lines, tests = [], results.tests()
    for metric in results.columns:
        test = tests.get(metric.key)
        if test is None:
            continue
        size = f"{test.difference:+.{metric.digits + 1}f}"
        if test.p_value is None or test.low is None or test.high is None:
            lines.append(f"{metric.name}: {size}, {test.n} seed(s): too few for a test")
            continue
        verdict = "no more than the difference between seeds"
        if test.p_value < LEVEL:
            verdict = f"rr is {'better' if (test.difference > 0) is metric.higher else 'worse'}"
        if test.p_value < LEVEL <= (test.adjusted or 0.0):
            verdict += " by this test, but not after Holm's adjustment for all metrics"
        lines.append(
            f"{metric.name}: {size} [{test.low:+.{metric.digits + 1}f}, "
            f"{test.high:+.{metric.digits + 1}f}], p = {test.p_value:.2g} "
            f"(Holm {test.adjusted:.2g}), {test.n} seeds: {verdict}"
        )
    return lines


def markdown(table: Table) -> str:
    """The table with a heading, as Markdown."""
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
    """The table as a `table*` environment, for booktabs."""
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
    """One line per row, seed and metric."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["row", "pool", "cfg", "lambda", "loss", "apply", "seed", "metric", "value"])
    for row in results.config.rows_of(results.profile):
        about = [row.name, row.pool, row.cfg, row.weight, row.loss, row.apply]
        for metric, values in sorted(results.values[row.name].items()):
            writer.writerows(
                [*about, seed, metric, value] for seed, value in sorted(values.items())
            )
    return out.getvalue()


def plot(results: Results) -> Figure | None:
    """A panel per metric: each seed, means and standard deviations, and the baseline's mean.

    Returns:
        None if there are no values.
    """
    rows = results.config.rows_of(results.profile)
    there = [m for m in results.columns if any(results.of_row(row.name, m.key) for row in rows)]
    if not there:
        return None
    labels = [" ".join(_setting(row)) for row in rows]
    drawn, axes = plt.subplots(
        1, len(there), figsize=(2.6 + 3.0 * len(there), 1.2 + 0.34 * len(rows)), sharey=True,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for axis, metric in zip(axes[0], there, strict=True):
        if baseline := results.of_row(results.config.baseline, metric.key):
            axis.axvline(float(np.mean(baseline)), color="#888888", linewidth=1, linestyle="--")
        for place, row in enumerate(rows):
            found = results.of_row(row.name, metric.key)
            if not found:
                continue
            tested = row.name in (results.config.regularized, results.config.baseline)
            colour = COLOURS[1] if tested else COLOURS[0]
            sd = float(np.std(found, ddof=1)) if len(found) > 1 else None
            axis.plot(found, [place] * len(found), "o", ms=3.5, alpha=0.45, c=colour)
            axis.errorbar(float(np.mean(found)), place, xerr=sd, fmt="D", ms=5, c=colour, capsize=3)
        axis.set(xlabel=f"{metric.name} ({'higher' if metric.higher else 'lower'} is better)")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="x", alpha=0.25)
    axes[0][0].set_yticks(range(len(rows)), labels)
    axes[0][0].set_ylabel("pool, CFG, λ")
    axes[0][0].invert_yaxis()
    return drawn
