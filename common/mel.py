"""The mel scale, for losses and features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def mel_filterbank(sample_rate: int, n_fft: int, n_mels: int) -> NDArray[np.float64]:
    """Triangular filters with peaks of 1, evenly spaced on the HTK mel scale up to Nyquist.

    Args:
        sample_rate: Hz.
        n_fft: STFT window, samples.
        n_mels: bands; narrow ones may hold no bin when this is large for `n_fft`.

    Returns:
        float64 [n_mels, n_fft // 2 + 1].
    """
    top = 2595 * np.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, n_mels + 2) / 2595) - 1)
    frequency = np.fft.rfftfreq(n_fft, 1 / sample_rate)
    rising = (frequency - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequency) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rising, falling))
