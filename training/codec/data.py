"""Audio for codec training: clips of some folders in memory, random segments by step number."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.audio import AudioError, check_audio, read_audio, resample
from common.errors import AttuneError

SUFFIXES = {".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".m4a", ".mp4", ".webm", ".opus"}


@dataclass(frozen=True)
class AudioClips:
    """Decoded clips and what was refused on the way."""

    waves: tuple[NDArray[np.float32], ...]
    refused: dict[str, int]
    """Number of files by reason."""

    @property
    def samples(self) -> int:
        return sum(len(wave) for wave in self.waves)


def audio_files(source: str) -> list[Path]:
    """The audio files below a folder, or those that a pattern like `audio/[1-4]-*` matches.

    Raises:
        AttuneError: neither a folder nor a pattern that matches anything.
    """
    found: Iterable[Path]
    if Path(source).is_dir():
        found = Path(source).rglob("*")
    elif glob.has_magic(source):
        found = map(Path, glob.iglob(source))
    else:
        raise AttuneError(f"codec training: {source}: no such folder of audio")
    return sorted(path for path in found if path.suffix.lower() in SUFFIXES)


def load_clips(folders: Sequence[str], sample_rate: int, min_duration_s: float) -> AudioClips:
    """Decode and resample every audio file of the folders or patterns, in sorted order.

    Raises:
        AttuneError: a folder that is missing, or no usable audio at all.
    """
    waves: list[NDArray[np.float32]] = []
    refused: dict[str, int] = {}
    for folder in folders:
        for path in audio_files(folder):
            try:
                audio = read_audio(path)
                check_audio(audio.wav, audio.sample_rate, min_duration_s, float("inf"))
            except AudioError as error:
                refused[error.reason] = refused.get(error.reason, 0) + 1
                continue
            except OSError as error:  # the disk, not the file
                raise AttuneError(f"codec training: {path}: {error}; run again") from error
            waves.append(resample(audio.wav, audio.sample_rate, sample_rate))
    if not waves:
        raise AttuneError(f"codec training: no usable audio in {', '.join(folders)}")
    return AudioClips(tuple(waves), refused)


def segment_batch(clips: AudioClips, segment: int, batch_size: int, seed: int, step: int) -> Tensor:
    """Random segments, a pure function of (seed, step): float32 [B, segment].

    Clips are drawn evenly, whatever their length; one shorter than a segment is zero-padded.
    """
    rng = np.random.default_rng((seed, step))
    rows = np.zeros((batch_size, segment), np.float32)
    for row in rows:
        wave = clips.waves[int(rng.integers(len(clips.waves)))]
        start = int(rng.integers(max(1, len(wave) - segment + 1)))
        piece = wave[start : start + segment]
        row[: len(piece)] = piece
    return torch.from_numpy(rows)
