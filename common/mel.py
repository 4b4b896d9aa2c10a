"""The mel scale, for losses and features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def mel_filterbank(sample_rate: int, n_fft: int, n_mels: int) -> NDArray[np.float64]:
    """Triangular filters with peaks of 1, evenly spaced on the HTK mel scale up to Nyquist.

    Args:
        sample_rate: Hz.
        n_fft: STFT window, samples.
        n_mels: number of bands; narrow bands hold no bin if this is large for `n_fft`.

    Returns:
        float64 [n_mels, n_fft // 2 + 1].
    """
    top = 2595 * np.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, n_mels + 2) / 2595) - 1)
    frequency = np.fft.rfftfreq(n_fft, 1 / sample_rate)
    rising = (frequency - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequency) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rising, falling))


FLOOR_DB = 40.0
"""A mel cell this far below the clip's loudest cell counts as silence."""


def mel_power(
    wave: NDArray[np.float64], sample_rate: int, n_fft: int, hop: int, n_mels: int
) -> NDArray[np.float64]:
    """Power in mel bands, float64 [frames, n_mels], of Hann windows of `n_fft` samples."""
    frames = np.lib.stride_tricks.sliding_window_view(wave, n_fft)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(n_fft), axis=1)) ** 2
    return power @ mel_filterbank(sample_rate, n_fft, n_mels).T


def log_mel(wave: NDArray[np.float32], sample_rate: int, n_mels: int = 48) -> NDArray[np.float64]:
    """Log-mel spectrogram in dB relative to the clip's loudest cell, floored at -`FLOOR_DB`.

    Args:
        wave: float32 [S].
        sample_rate: Hz.

    Returns:
        float64 [frames, n_mels], 32 ms windows every 16 ms.
    """
    n_fft = int(2 ** np.round(np.log2(0.032 * sample_rate)))
    padded = np.pad(np.asarray(wave, np.float64), (n_fft // 2, n_fft))
    mel = mel_power(padded, sample_rate, n_fft, n_fft // 2, n_mels)
    decibel = 10 * np.log10(mel + 1e-12)
    return np.maximum(decibel - decibel.max(), -FLOOR_DB)
