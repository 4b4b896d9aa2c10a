"""Make the two clips of a pair equal in rate, length and loudness."""

from __future__ import annotations

import io

import numpy as np
import soundfile

from common.audio import Wave, resample
from common.loudness import headroom_db, integrated_loudness

LOUDNESS = -23.0
"""LUFS (EBU R 128)."""
_FADE_S = 0.02
"""Fade-out of both clips: a click at the end would reveal a clip that was cut."""


def equalize(
    clips: tuple[tuple[Wave, int], tuple[Wave, int]], rate: int, target: float
) -> tuple[tuple[Wave, Wave], float | None]:
    """Bring a pair to one rate, one length and one loudness.

    If the peak limit keeps a clip below the target, the other clip gets the same lower loudness.

    Args:
        clips: waveforms float32 [S] with their rates in Hz.
        rate: sample rate of the result, Hz.
        target: loudness of the result, LUFS.

    Returns:
        Waveforms float32 [S] as long as the shorter clip, and the loudness of both in LUFS.  The
        loudness is None if a clip is silent; then each clip is as close to the target as it can be.
    """
    first, other = (resample(wave, own, rate) for wave, own in clips)
    length = min(len(first), len(other))
    fade = np.ones(length, np.float32)
    n = min(round(_FADE_S * rate), length)
    fade[length - n :] = np.linspace(1, 0, n, dtype=np.float32)
    waves = first[:length] * fade, other[:length] * fade
    found = [integrated_loudness(wave, rate) for wave in waves]
    gains = [
        min(target - loudness, headroom_db(wave)) if np.isfinite(loudness) else 0.0
        for wave, loudness in zip(waves, found, strict=True)
    ]
    reached: float | None = None
    if all(np.isfinite(found)):
        reached = min(loudness + gain for loudness, gain in zip(found, gains, strict=True))
        gains = [reached - loudness for loudness in found]
    first, other = (
        (wave * 10 ** (gain / 20)).astype(np.float32)
        for wave, gain in zip(waves, gains, strict=True)
    )
    return (first, other), reached


def wav_bytes(wave: Wave, rate: int) -> bytes:
    """A mono WAV file of 16 bits that has only a header and samples."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wave, -1, 1), rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
