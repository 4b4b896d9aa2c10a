"""Plots of `shards report`: histograms and codes, in one style."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

from common.page import COLOURS
from pipeline.inspect.tally import Histogram


def stacked(series: Mapping[str, Histogram], x_label: str, y_label: str) -> Figure:
    """Histograms on top of each other, in `COLOURS`; with a long tail, the axis is logarithmic."""
    step = next(iter(series.values())).step
    whole = Histogram(np.concatenate([histogram.values for histogram in series.values()]), step)
    least, most = whole.values.min(), whole.values.max()
    wide = least > 0 and most > 6 * whole.quantile(0.5)
    if wide and step < 1:  # whole numbers would leave gaps between narrow bins
        edges = np.geomspace(least * 0.98, most * 1.02, 41)
    else:
        wide = False
        width = np.ceil(max((most - least) / 40, step) / step) * step
        edges = np.arange(least - width / 2, most + width, width)
    plot, axis = _axes()
    bottom = np.zeros(len(edges) - 1)
    for colour, histogram in zip(COLOURS, series.values(), strict=False):
        heights, _ = np.histogram(histogram.steps * step, edges)
        axis.bar(edges[:-1], heights, np.diff(edges), bottom, align="edge", color=colour)
        bottom += heights
    if wide:
        axis.set_xscale("log")
        marks = [m * 10.0**e for e in range(-1, 5) for m in (1, 2, 5)]
        axis.set_xticks([mark for mark in marks if edges[0] <= mark <= edges[-1]])
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set(xlabel=x_label + (" (log scale)" if wide else ""), ylabel=y_label)
    return plot


def code_shares(counts: NDArray[np.int64]) -> Figure:
    """Share of the frames that each code takes, most frequent first, a line per codebook.

    Args:
        counts: int64 [K, codebook size].
    """
    plot, axis = _axes()
    for colour, row in zip(COLOURS, counts, strict=False):
        used = np.sort(row[row > 0])[::-1]
        share = 100 * used / max(1, used.sum())
        axis.plot(np.arange(1, len(used) + 1), share, color=colour, linewidth=1.8)
    axis.set(
        yscale="log",
        xlabel="rank of the code",
        ylabel="share of frames, % (log scale)",
        xlim=(0, counts.shape[1] + 1),
    )
    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    return plot


def _axes() -> tuple[Figure, Axes]:
    """One small plot: as wide as a phone, side by side on a larger screen."""
    plot, axis = plt.subplots(figsize=(4.6, 3.1), layout="constrained")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, axis="y")
    axis.set_axisbelow(True)
    return plot, axis
