"""One self-contained HTML page: tables, plots, players.  No scripts, no requests.

Everything a browser shows is inside the file: plots as images, sounds as MP3.  Text that comes from
catalogs or prompts is escaped here and nowhere else.
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
import soxr
from matplotlib.figure import Figure
from numpy.typing import NDArray

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Okabe and Ito's palette: told apart by colour-blind readers."""

_MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
"""Browsers refuse whatever is not inside the file, should a text ever slip through unescaped."""

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
td { overflow-wrap: break-word; } th { font-weight: 600; }
td.number, th.number { text-align: right; } td.number, th.number, .whole { white-space: nowrap; }
.key { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1rem 0; }
.key div { background: #f4f6f8; border-radius: .5rem; padding: .7rem 1.1rem; }
.key b { display: block; font-size: 1.5rem; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; list-style: none; padding: 0;
          margin: .6rem 0; font-size: .92rem; }
.legend i { display: inline-block; width: .8rem; height: .8rem; margin-right: .4rem; }
.plots, .clips { display: grid; gap: 1.2rem 2rem; margin: .8rem 0; align-items: start;
                 grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr)); }
.clips { grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); }
.plots h3, .clips h4 { font-size: 1rem; margin: 0 0 .3rem; }
.bars { display: grid; grid-template-columns: minmax(0, auto) minmax(5rem, 1fr) auto;
        gap: .15rem .7rem; font-size: .92rem; margin: .3rem 0; max-width: 34rem; }
.bars span { overflow-wrap: anywhere; max-width: 16rem; }
.bars div { align-self: center; }
.bars b { display: block; height: .8rem; background: #0072B2; min-width: 1px; }
.bars em { font-style: normal; text-align: right; font-variant-numeric: tabular-nums; }
.card audio { width: 100%; height: 2.2rem; }
.card ul { margin: .3rem 0; padding-left: 1.1rem; overflow-wrap: anywhere; }
.card small { color: #555; overflow-wrap: anywhere; }
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
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
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

    def is_number(value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    def cell(value: object) -> str:
        if isinstance(value, Html):
            return f"<td>{value}</td>"
        if is_number(value):
            text = f"{value:,}" if isinstance(value, int) else f"{value:,.3g}"
            return f'<td class="number">{text}</td>'
        return f"<td>{escape(str(value))}</td>"

    numeric = [is_number(value) for value in rows[0]] if rows else [False] * len(header)
    classes = [' class="number"' if right else "" for right in numeric]
    head = "".join(
        f"<th{kind}>{escape(name)}</th>" for name, kind in zip(header, classes, strict=True)
    )
    body = "".join(f"<tr>{''.join(cell(value) for value in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def bars(rows: Mapping[str, float], unit: str = "") -> str:
    """Horizontal bars from zero: {label: number}, with the unit after each number.

    Labels are text of the page, not of an image: any script shows, and a phone breaks long ones.
    """
    most = max(rows.values(), default=0) or 1
    cells = (
        f'<span><bdi>{escape(label)}</bdi></span><div><b style="width:{100 * number / most:.1f}%">'
        f"</b></div><em>{f'{number:,}' if isinstance(number, int) else f'{number:,.3g}'} "
        f"{escape(unit)}</em>"
        for label, number in rows.items()
    )
    return f'<div class="bars">{"".join(cells)}</div>'


def legend(labels: Sequence[str]) -> str:
    """The series of a plot in the order of `COLOURS`."""
    items = (
        f'<li><i style="background:{colour}"></i><bdi>{escape(label)}</bdi></li>'
        for colour, label in zip(COLOURS, labels, strict=False)
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


class Html(str):
    """Text that is HTML already."""


def player(wave: NDArray[np.float32], sample_rate: int) -> Html:
    """A sound to play, as MP3, at the nearest rate that MP3 has.

    Args:
        wave: float32 [S]; clipped at full scale.
    """
    if sample_rate not in _MP3_RATES:
        nearest = min(_MP3_RATES, key=lambda rate: abs(rate - sample_rate))
        wave, sample_rate = soxr.resample(wave, sample_rate, nearest), nearest
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wave, -1, 1), sample_rate, format="MP3")
    sound = base64.b64encode(buffer.getvalue()).decode()
    return Html(f'<audio controls preload="none" src="data:audio/mpeg;base64,{sound}"></audio>')


def figure(plot: Figure, alternative: str) -> str:
    """A matplotlib figure as an image; closes it."""
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", dpi=130, bbox_inches="tight")
    plt.close(plot)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<figure><img alt="{escape(alternative)}" src="data:image/png;base64,{data}"></figure>'


def log_spectrogram(wave: NDArray[np.float32], n_fft: int = 1024) -> NDArray[np.float32]:
    """Magnitudes over 80 dB as grey values 0...1, low frequencies at the bottom.

    Args:
        wave: float32 `[S]`.

    Returns:
        float32 `[n_fft / 2 + 1, 4 S / n_fft + 1]`.
    """
    import torch  # seconds to import, and most pages show no spectrogram of this kind

    window = torch.hann_window(n_fft)
    spectrum = torch.stft(
        torch.from_numpy(wave), n_fft, n_fft // 4, window=window, return_complex=True
    ).abs()
    level = 20 * torch.log10(spectrum / spectrum.max().clamp(min=1e-9) + 1e-9)
    return ((level.clamp(min=-80) + 80) / 80).flip(0).numpy()
