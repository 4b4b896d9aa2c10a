"""Plots of `shards report`: maths of a spectrogram, and figures in one style."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

from common import page
from pipeline.inspect.tally import Histogram

FLOOR_DB = 80.0
"""Below the loudest cell of a clip, where its spectrogram ends."""


def spectrogram(wave: NDArray[np.float32], sample_rate: int) -> NDArray[np.float64]:
    """Power in dB below the clip's loudest cell, floored at -80.

    Args:
        wave: float32 [S], S >= 1.

    Returns:
        float64 [bins, frames], from 0 Hz up, bins of 62.5 Hz; as many frames of 32 ms as tell in a
        small picture (about 240), as the picture's size is what a page has to carry.
    """
    window = 2 * round(0.016 * sample_rate)
    hop = max(window // 2, len(wave) // 240)
    padded = np.pad(np.asarray(wave, np.float64), (window // 2, window))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(window), axis=1)).T ** 2
    pairs = power[1 : len(power) // 2 * 2 + 1].reshape(-1, 2, power.shape[1]).mean(axis=1)
    decibel = 10 * np.log10(pairs + 1e-12)
    return np.maximum(decibel - decibel.max(), -FLOOR_DB)


def stacked(series: Mapping[str, Histogram], x_label: str, y_label: str) -> Figure:
    """Histograms on top of each other, in `COLOURS`; a long tail makes the axis logarithmic."""
    step = next(iter(series.values())).step
    whole = Histogram(np.concatenate([histogram.values for histogram in series.values()]), step)
    wide = whole.least > 0 and whole.most > 6 * whole.quantile(0.5)
    if wide and step < 1:  # whole numbers would leave gaps between narrow bins
        edges = np.geomspace(whole.least * 0.98, whole.most * 1.02, 41)
    else:
        wide = False
        width = np.ceil(max((whole.most - whole.least) / 40, step) / step) * step
        edges = np.arange(whole.least - width / 2, whole.most + width, width)
    plot, axis = _axes()
    bottom = np.zeros(len(edges) - 1)
    for colour, histogram in zip(page.COLOURS, series.values(), strict=False):
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
    for colour, row in zip(page.COLOURS, counts, strict=False):
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


def spectrogram_plot(wave: NDArray[np.float32], sample_rate: int) -> Figure:
    plot, axis = plt.subplots(figsize=(3.4, 1.7), layout="constrained")
    extent = (0, len(wave) / sample_rate, 0, sample_rate / 2000)
    axis.imshow(
        spectrogram(wave, sample_rate),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=extent,
        cmap="magma",
        vmin=-FLOOR_DB,
        vmax=0,
    )
    axis.set_xlabel("seconds", fontsize=8)
    axis.set_ylabel("kHz", fontsize=8)
    axis.tick_params(labelsize=8)
    return plot


def _axes() -> tuple[Figure, Axes]:
    """One small plot: as wide as a phone, side by side on a larger screen."""
    plot, axis = plt.subplots(figsize=(4.6, 3.1), layout="constrained")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, axis="y")
    axis.set_axisbelow(True)
    return plot, axis
