"""What the training report adds to `common.page`: clips with spectrograms, curves, confusions."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from common.mel import FLOOR_DB, log_mel
from common.page import (
    COLOURS,
    Html,
    figure,
    key_figures,
    page,
    paragraph,
    player,
    section,
    table,
)

__all__ = [
    "COLOURS",
    "Html",
    "clip",
    "confusion",
    "curves",
    "figure",
    "key_figures",
    "page",
    "paragraph",
    "section",
    "table",
]


def clip(wave: NDArray[np.float32], sample_rate: int, note: str = "", mark: str = "") -> Html:
    """A spectrogram above a player.

    Args:
        wave: float32 [S].
        note: shown below the player.
        mark: `right`, `wrong` or nothing; colours the note.
    """
    kind = f' class="{mark}"' if mark in {"right", "wrong"} else ""
    return Html(
        f'<div class="clip"><img alt="log-mel spectrogram, 0 to {len(wave) / sample_rate:.1f} s, '
        f'0 to {sample_rate // 2000} kHz" src="{_spectrogram(wave, sample_rate)}">'
        f"{player(wave, sample_rate)}<small{kind}>{escape(note)}</small></div>"
    )


def _spectrogram(wave: NDArray[np.float32], sample_rate: int) -> str:
    mel = log_mel(wave, sample_rate, n_mels=64).T[::-1]
    buffer = io.BytesIO()
    plt.imsave(buffer, mel, cmap="magma", vmin=-FLOOR_DB, vmax=0, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def curves(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    x_label: str = "step",
) -> Figure:
    """Side-by-side line plots: {y label: {series: (x, y)}}."""
    plot, axes = plt.subplots(
        1, len(panels), figsize=(5.2 * len(panels), 3.4), squeeze=False, layout="constrained"
    )
    for axis, (label, series) in zip(axes[0], panels.items(), strict=True):
        for colour, (name, (x, y)) in zip(COLOURS, series.items(), strict=False):
            axis.plot(x, y, label=name, color=colour, linewidth=1.6)
        axis.set(xlabel=x_label, ylabel=label)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        if any(len(x) for x, _ in series.values()):
            axis.legend(frameon=False)
    return plot


def confusion(
    panels: Mapping[str, tuple[Sequence[str], Sequence[str]]], classes: Sequence[str]
) -> Figure:
    """Side-by-side matrices of (asked for, judged): {title: (labels, judged)}."""
    size = 2.2 + 0.24 * len(classes)
    plot, axes = plt.subplots(
        1,
        len(panels),
        figsize=(size * len(panels) + 1.5, size),
        squeeze=False,
        layout="constrained",
        sharey=True,
    )
    index = {name: i for i, name in enumerate(classes)}
    for axis, (title, (labels, judged)) in zip(axes[0], panels.items(), strict=True):
        counts = np.zeros((len(classes), len(classes)), int)
        for asked, heard in zip(labels, judged, strict=True):
            counts[index[asked], index[heard]] += 1
        axis.imshow(counts, cmap="Blues", vmin=0)
        for row, column in np.argwhere(counts):
            share = counts[row, column] / counts.max()
            axis.text(
                column,
                row,
                counts[row, column],
                ha="center",
                va="center",
                fontsize=7,
                color="white" if share > 0.6 else "black",
            )
        axis.set_xticks(range(len(classes)), classes, rotation=90, fontsize=8)
        axis.set_yticks(range(len(classes)), classes, fontsize=8)
        axis.set(title=title, xlabel="sounds like")
    axes[0][0].set_ylabel("prompt")
    return plot
