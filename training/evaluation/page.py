"""One self-contained HTML page: tables, plots, players with spectrograms.  No scripts, no requests.

Everything a browser shows is inside the file: plots and spectrograms as PNG, clips as MP3.  Text
that comes from catalogs or prompts is escaped here and nowhere else.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

import matplotlib

matplotlib.use("Agg")  # no display
import matplotlib.pyplot as plt
import numpy as np
import soundfile
from matplotlib.figure import Figure
from numpy.typing import NDArray

from training.evaluation.agreement import FLOOR_DB, log_mel

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Okabe and Ito's palette: told apart by colour-blind readers."""

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0; }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; border-top: 1px solid #ddd; padding-top: 1.2rem; }
p { max-width: 48rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; margin: .8rem 0; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #e5e5e5;
         vertical-align: top; }
td { overflow-wrap: anywhere; } th { font-weight: 600; } td.number, th.number { text-align: right; }
.key { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1rem 0; }
.key div { background: #f4f6f8; border-radius: .5rem; padding: .7rem 1.1rem; }
.key b { display: block; font-size: 1.5rem; }
figure { margin: 0; } figure img { max-width: 100%; }
.clip img { display: block; width: 14rem; height: 5rem; image-rendering: auto; }
.clip audio { width: 14rem; height: 2rem; margin-top: .2rem; }
.clip small { color: #555; display: block; }
.clip small.right { color: #00694d; } .clip small.wrong { color: #a33d00; }
footer { margin: 3rem 0 1rem; color: #666; font-size: .85rem; }
"""


def page(title: str, lead: str, sections: Sequence[str], footer: str) -> str:
    """The whole document from finished sections (already HTML)."""
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>"
        f"<h1>{escape(title)}</h1><p>{escape(lead)}</p>\n{body}\n"
        f"<footer>{escape(footer)}</footer></main></body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A headed section of finished HTML parts."""
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def key_figures(figures: Mapping[str, str]) -> str:
    """Large figures with their captions: {caption: value}."""
    cells = (f"<div><b>{escape(v)}</b>{escape(k)}</div>" for k, v in figures.items())
    return f'<div class="key">{"".join(cells)}</div>'


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; numbers are right-aligned, strings that are `Html` are taken as they are."""

    def cell(value: object, tag: str = "td") -> str:
        if isinstance(value, Html):
            return f"<{tag}>{value}</{tag}>"
        if isinstance(value, int | float) and not isinstance(value, bool):
            text = f"{value:,}" if isinstance(value, int) else f"{value:,.3g}"
            return f'<{tag} class="number">{text}</{tag}>'
        return f"<{tag}>{escape(str(value))}</{tag}>"

    head = "".join(cell(name, "th") for name in header)
    body = "".join(f"<tr>{''.join(cell(value) for value in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


class Html(str):
    """Text that is HTML already."""


def clip(wave: NDArray[np.float32], sample_rate: int, note: str = "", mark: str = "") -> Html:
    """A spectrogram above a player.

    Args:
        wave: float32 [S].
        note: shown below the player.
        mark: `right`, `wrong` or nothing; colours the note.
    """
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wave, -1, 1), sample_rate, format="MP3")
    sound = base64.b64encode(buffer.getvalue()).decode()
    kind = f' class="{mark}"' if mark in {"right", "wrong"} else ""
    return Html(
        f'<div class="clip"><img alt="log-mel spectrogram, 0 to {len(wave) / sample_rate:.1f} s, '
        f'0 to {sample_rate // 2000} kHz" src="{_spectrogram(wave, sample_rate)}">'
        f'<audio controls preload="none" src="data:audio/mpeg;base64,{sound}"></audio>'
        f"<small{kind}>{escape(note)}</small></div>"
    )


def _spectrogram(wave: NDArray[np.float32], sample_rate: int) -> str:
    mel = log_mel(wave, sample_rate, n_mels=64).T[::-1]
    buffer = io.BytesIO()
    plt.imsave(buffer, mel, cmap="magma", vmin=-FLOOR_DB, vmax=0, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def figure(plot: Figure, alternative: str) -> str:
    """A matplotlib figure as an image; closes it."""
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", dpi=130, bbox_inches="tight")
    plt.close(plot)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<figure><img alt="{escape(alternative)}" src="data:image/png;base64,{data}"></figure>'


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
