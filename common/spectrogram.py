"""The one spectrogram that pages and TensorBoard show."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from common.mel import mel_power

BANDS = 64
FRAMES = 240
"""Largest number of columns: a small picture shows no more, and they make the page larger."""
RANGE_DB = 80.0
"""Range below the loudest point of a clip."""


def spectrogram(wave: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
    """Mel power of the clip's loudest 80 dB as grey values; the loudest point is 1.

    Windows of 64 ms every 16 ms, or fewer, so that there are at most 240 columns.

    Args:
        wave: float32 `[S]`, S >= 1.
        sample_rate: Hz.

    Returns:
        float32 `[64, frames]`, 0 to 1: a picture whose first row is half the sample rate and whose
        last row is 0 Hz.
    """
    window = 2 * round(0.032 * sample_rate)
    hop = max(window // 4, -(-len(wave) // FRAMES))
    whole = np.pad(np.asarray(wave, np.float64), (0, max(0, window - len(wave))))
    mel = mel_power(whole, sample_rate, window, hop, BANDS).T
    level = 10 * np.log10(mel / max(mel.max(), 1e-12) + 1e-9)  # silence: -90 dB everywhere
    return (np.maximum(level, -RANGE_DB) / RANGE_DB + 1)[::-1].astype(np.float32)
