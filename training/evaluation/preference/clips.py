"""Two clips made alike in everything but what they sound like."""

from __future__ import annotations

import io

import numpy as np
import soundfile
from numpy.typing import NDArray

from common.audio import AudioError, read_audio, resample
from common.errors import AttuneError
from common.loudness import headroom_db, integrated_loudness

Wave = NDArray[np.float32]

LOUDNESS = -23.0
"""LUFS (EBU R 128)."""
_FADE_S = 0.02
"""Of both clips' ends: a clip that was trimmed must not be known by its click."""


def read_clip(path: str) -> tuple[Wave, int]:
    """A clip as mono float32 [S] at its own rate in Hz.

    Raises:
        AttuneError: it cannot be read, or is not finite.
    """
    try:
        audio = read_audio(path)
    except (AudioError, OSError) as error:
        raise AttuneError(f"clip {path}: {error}") from error
    if not np.isfinite(audio.wav).all():
        raise AttuneError(f"clip {path}: holds NaN or infinite samples")
    return audio.wav, audio.sample_rate


def equalize(
    clips: tuple[tuple[Wave, int], tuple[Wave, int]], rate: int, target: float
) -> tuple[tuple[Wave, Wave], float | None]:
    """Bring a pair to one rate, one length and one loudness.

    Where the peak limit keeps one of them below the target, the other one is lowered to the same.

    Args:
        clips: waveforms float32 [S] with their rates in Hz.
        rate: Hz of the result.
        target: LUFS.

    Returns:
        Waveforms float32 [S], S that of the shorter one, and the loudness of both in LUFS: None
        where one has none (silence), and each is as loud as it can be up to the target.
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
    """A WAV file of 16 bits, mono: header and samples, and nothing that tells of its making."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wave, -1, 1), rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
