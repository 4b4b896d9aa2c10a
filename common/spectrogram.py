"""The one spectrogram that pages and TensorBoard show."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from common.mel import mel_filterbank

BANDS = 64
FRAMES = 240
"""Columns at most: more do not show in a small picture, and a page has to carry them."""
RANGE_DB = 80.0
"""Below the loudest point of a clip, where its spectrogram ends."""


def spectrogram(wave: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
    """Mel power over the clip's loudest 80 dB as grey values, 1 at the loudest point.

    Windows of 64 ms every 16 ms, or as far apart as 240 columns allow.

    Args:
        wave: float32 `[S]`, S >= 1.
        sample_rate: Hz.

    Returns:
        float32 `[64, frames]`, 0 to 1: a picture, with half the sample rate in the first row and
        0 Hz in the last.
    """
    window = 2 * round(0.032 * sample_rate)
    hop = max(window // 4, -(-len(wave) // FRAMES))
    whole = np.pad(np.asarray(wave, np.float64), (0, max(0, window - len(wave))))
    frames = np.lib.stride_tricks.sliding_window_view(whole, window)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(window), axis=1)) ** 2
    mel = mel_filterbank(sample_rate, window, BANDS) @ power.T
    level = 10 * np.log10(mel / max(mel.max(), 1e-12) + 1e-9)  # silence: -90 dB everywhere
    return (np.maximum(level, -RANGE_DB) / RANGE_DB + 1)[::-1].astype(np.float32)
