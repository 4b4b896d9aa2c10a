"""Plots of the training reports: curves, confusions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix

from common.page import COLOURS

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""{name: (x, y)}."""


def curves(series: Series, y_label: str) -> Figure:
    """Lines over training steps."""
    plot, axis = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
    for colour, (name, (x, y)) in zip(COLOURS, series.items(), strict=False):
        axis.plot(x, y, label=name, color=colour, linewidth=1.6)
    axis.set(xlabel="step", ylabel=y_label)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    if any(len(x) for x, _ in series.values()):
        axis.legend(frameon=False)
    return plot


def confusion(labels: Sequence[str], judged: Sequence[str], classes: Sequence[str]) -> Figure:
    """A confusion matrix.

    Args:
        labels: prompted class of each clip.
        judged: judged class of each clip.
        classes: all classes, in the order of rows and columns.
    """
    size = 2.2 + 0.24 * len(classes)
    plot, axis = plt.subplots(figsize=(size + 1.5, size), layout="constrained")
    counts = confusion_matrix(labels, judged, labels=classes)
    axis.imshow(counts, cmap="Blues", vmin=0)
    for row, column in np.argwhere(counts):
        colour = "white" if counts[row, column] > 0.6 * counts.max() else "black"
        text = str(counts[row, column])
        axis.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    axis.set_xticks(range(len(classes)), classes, rotation=90, fontsize=8)
    axis.set_yticks(range(len(classes)), classes, fontsize=8)
    axis.set(xlabel="sounds like", ylabel="prompt")
    return plot
