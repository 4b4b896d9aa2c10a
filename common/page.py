"""Self-contained HTML pages from templates: tables, plots, players. No scripts, no requests.

Plots (PNG) and sounds (MP3) are in the file as data URIs. Templates escape all values, so text from
catalogs, prompts and raters is shown and never run. `templates/` has the frame of a page
(`base.html`), the shared parts (`parts.html`) and the one stylesheet (`style.css`). The template of
each page is in the folder of its module.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from functools import cache
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import soundfile
import soxr
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure
from numpy.typing import NDArray

from common.spectrogram import spectrogram

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Okabe and Ito's palette: colour-blind readers can distinguish all six."""

_MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)


def render(package: str, template: str, **facts: Any) -> str:
    """A page as text.

    Args:
        package: the dotted name of the package whose folder has the template.
        template: its file name.
        facts: the template's variables.
    """
    return _environment(package).get_template(template).render(facts)


@dataclass(frozen=True)
class Clip:
    """A sound with its spectrogram and player; `parts.html` draws it."""

    seconds: float
    kilohertz: float
    """The top of the spectrogram."""
    picture: str
    sound: str
    note: str = ""
    verdict: str = ""
    """`right` or `wrong`: the colour of the note."""


def clip(wave: NDArray[np.float32], sample_rate: int, note: str = "", verdict: str = "") -> Clip:
    """A sound with its spectrogram.

    Args:
        wave: float32 `[S]`.
        note: a line below the player.
        verdict: `right`, `wrong` or nothing.
    """
    picture, heard = spectrogram_picture(wave, sample_rate), sound(wave, sample_rate)
    return Clip(len(wave) / sample_rate, sample_rate / 2000, picture, heard, note, verdict)


def sound(wave: NDArray[np.float32], sample_rate: int) -> str:
    """An MP3 as a data URI, at the nearest sample rate that MP3 supports.

    Args:
        wave: float32 `[S]`; clipped at full scale.
    """
    if sample_rate not in _MP3_RATES:
        nearest = min(_MP3_RATES, key=lambda rate: abs(rate - sample_rate))
        wave, sample_rate = soxr.resample(wave, sample_rate, nearest), nearest
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wave, -1, 1), sample_rate, format="MP3")
    return _data_uri("audio/mpeg", buffer)


def spectrogram_picture(wave: NDArray[np.float32], sample_rate: int) -> str:
    """A spectrogram as the data URI of a PNG."""
    buffer = io.BytesIO()
    grey = spectrogram(wave, sample_rate)
    matplotlib.image.imsave(buffer, grey, cmap="magma", vmin=0, vmax=1, format="png")
    return _data_uri("image/png", buffer)


def picture(figure: Figure) -> str:
    """A matplotlib figure as the data URI of a PNG; closes the figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight")
    plt.close(figure)
    return _data_uri("image/png", buffer)


def _data_uri(kind: str, buffer: io.BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


@cache
def _environment(package: str) -> Environment:
    """The templates of a package, and the shared templates."""
    made = Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader("common")]),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["COLOURS"] = COLOURS
    made.filters |= {"form": format, "figure": _figure}
    return made


def _figure(value: object) -> str:
    """A table's cell as text: integers with separators, floats with three significant digits."""
    if isinstance(value, float):
        return f"{value:,.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
