"""Loudness of clips: integrated (ITU-R BS.1770), and the gain that reaches a target."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PEAK_DB = -1.0
"""Highest peak after loudness normalization, dBFS."""


def integrated_loudness(wave: NDArray[np.float32], rate: int) -> float:
    """Integrated loudness (ITU-R BS.1770) of float32 `[S]` in LUFS; -inf below the standard's gate
    of -70, for example for silence."""
    import pyloudnorm

    if not wave.any():
        return -np.inf
    # A clip shorter than the standard's block of 0.4 s is one block. The block is half a sample
    # shorter than the clip, because rounding could make the clip shorter than its block.
    meter = pyloudnorm.Meter(rate, block_size=min(0.4, (len(wave) - 0.5) / rate))
    return float(meter.integrated_loudness(wave.astype(np.float64)))


def at_loudness(wave: NDArray[np.float32], rate: int, target: float) -> NDArray[np.float32]:
    """A clip, float32 `[S]`, at an integrated loudness in LUFS, or less if its peak would exceed
    `PEAK_DB`: nothing is clipped. Silence is returned unchanged."""
    loudness = integrated_loudness(wave, rate)
    if not np.isfinite(loudness):
        return wave
    gain = min(target - loudness, headroom_db(wave))
    return (wave * 10 ** (gain / 20)).astype(np.float32)


def headroom_db(wave: NDArray[np.float32]) -> float:
    """Decibels from a clip's peak up to `PEAK_DB`; infinite for silence."""
    peak = float(np.abs(wave).max(initial=0.0))
    return np.inf if peak == 0 else PEAK_DB - 20 * float(np.log10(peak))
