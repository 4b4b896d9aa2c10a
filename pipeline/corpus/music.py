"""Short music tracks: drums, bass, chords and a lead at a tempo, in a key, with an instrument."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pipeline.corpus.sounds import add_event

MUSIC_RATE = 32_000
"""Hz."""

KEYS = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


@dataclass(frozen=True)
class Track:
    """The description of one track, for synthesis and for its catalog row."""

    title: str
    artist: str
    genre: str
    instrument: str
    key: str
    mode: str
    bpm: int
    seconds: float
    moods: tuple[str, ...]


TRACKS: tuple[Track, ...] = (
    Track("Morning Steps", "Generator A", "folk", "guitar", "G", "major", 96, 44, ("calm",)),
    Track(
        "Night Line", "Generator A", "house", "synthesizer", "A", "minor", 124, 60,
        ("driving", "dark"),
    ),
    Track("Paper Lanterns", "Generator B", "ambient", "pad", "D", "major", 70, 72, ("dreamy",)),
    Track(
        "Low Gear", "Generator B", "rock", "electric guitar", "E", "minor", 138, 48, ("energetic",)
    ),
    Track(
        "Clockwork Waltz", "Generator C", "classical", "piano", "F", "major", 108, 52, ("playful",)
    ),
    Track("Harbour", "Generator C", "jazz", "organ", "A#", "major", 88, 64, ("warm", "relaxed")),
    Track("Sparks", "Generator D", "chiptune", "square lead", "C", "major", 150, 40, ("bright",)),
    Track("Slow Tide", "Generator D", "cinematic", "strings", "C#", "minor", 60, 90, ("sad",)),
)  # fmt: skip

_PARTIALS = {
    "guitar": (1, 0.5, 0.35, 0.2, 0.1),
    "synthesizer": (1, 0.6, 0.5, 0.4, 0.3, 0.25),
    "pad": (1, 0.3, 0.1),
    "electric guitar": (1, 0.9, 0.8, 0.6, 0.5, 0.4),
    "piano": (1, 0.45, 0.2, 0.1),
    "organ": (1, 0.8, 0.0, 0.6, 0.0, 0.3),
    "square lead": (1, 0, 0.33, 0, 0.2, 0, 0.14),
    "strings": (1, 0.7, 0.5, 0.35, 0.2),
}
_SUSTAINED = {"pad", "organ", "strings"}


def _note(midi: float, seconds: float, instrument: str) -> NDArray[np.float64]:
    t = np.arange(round(seconds * MUSIC_RATE)) / MUSIC_RATE
    f0 = 440.0 * 2 ** ((midi - 69) / 12)
    wave = np.zeros_like(t)
    for k, gain in enumerate(_PARTIALS[instrument], start=1):
        if gain and f0 * k < MUSIC_RATE / 2.2:
            wave += gain * np.sin(2 * np.pi * f0 * k * t)
    edge = 0.12 if instrument in _SUSTAINED else 0.008
    shape = np.clip(np.minimum(t / edge, (t[-1] - t) / 0.02), 0, 1)
    if instrument not in _SUSTAINED:
        shape = shape * np.exp(-t / max(0.25, seconds * 0.5))
    return wave * shape


def _drum(rng: np.random.Generator, kind: str) -> NDArray[np.float64]:
    t = np.arange(round(0.18 * MUSIC_RATE)) / MUSIC_RATE
    if kind == "kick":
        frequency = 48 + 120 * np.exp(-t / 0.03)
        return np.sin(2 * np.pi * np.cumsum(frequency) / MUSIC_RATE) * np.exp(-t / 0.08)
    hiss = rng.standard_normal(len(t))
    if kind == "snare":
        body = np.sin(2 * np.pi * 190 * t)
        return 0.5 * hiss * np.exp(-t / 0.05) + 0.5 * body * np.exp(-t / 0.04)
    return 0.25 * np.diff(hiss, prepend=0.0) * np.exp(-t / 0.02)


def render_track(track: Track, rng: np.random.Generator) -> NDArray[np.float32]:
    """Synthesize a track: float32 [seconds * MUSIC_RATE], peak -3 dB full scale."""
    out = np.zeros(round(track.seconds * MUSIC_RATE))
    place = partial(add_event, out, rate=MUSIC_RATE)
    beat = 60.0 / track.bpm
    tonic = 48 + KEYS.index(track.key)
    third = 4 if track.mode == "major" else 3
    scale = (0, 2, third, 5, 7, 9 if track.mode == "major" else 8, 11)
    progression = (0, 5, 3, 4) if track.mode == "major" else (0, 5, 2, 4)
    drums = track.genre not in {"ambient", "classical", "cinematic", "folk"}
    bars = int(track.seconds / (4 * beat)) + 1
    for bar in range(bars):
        start = bar * 4 * beat
        degree = progression[bar % 4]
        root = tonic + scale[degree]
        for interval in (0, third if degree in (0, 3, 4) else 7 - third, 7):
            place(_note(root + 12 + interval, 4 * beat, track.instrument), start, 0.12)
        for step in range(4):
            place(_note(root - 12, beat * 0.9, "guitar"), start + step * beat, 0.3)
            if drums:
                place(_drum(rng, "kick" if step % 2 == 0 else "snare"), start + step * beat, 0.5)
                place(_drum(rng, "hat"), start + (step + 0.5) * beat, 0.3)
        for step in range(8):
            if rng.uniform() < 0.6:
                pitch = tonic + 24 + scale[int(rng.integers(0, 7))]
                place(_note(pitch, beat * 0.5, track.instrument), start + step * beat / 2, 0.18)
    return (out / np.abs(out).max() * 10 ** (-3 / 20)).astype(np.float32)
