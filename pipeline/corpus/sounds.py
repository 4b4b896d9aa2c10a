"""Sixteen sound classes synthesized from a few physical parameters.

Each class is one function `(rng, seconds, p) -> wave` at `SAMPLE_RATE`.  `Params` differ between
the clips of a class.  Only numpy and scipy with a seeded generator are used: the same seed gives
the same samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import fftconvolve

SAMPLE_RATE = 16_000
"""Hz."""

Samples = NDArray[np.float64]
Rng = np.random.Generator


@dataclass(frozen=True)
class Params:
    """The parameters that differ between the clips of a class."""

    pitch: float
    """Factor on every frequency, about 0.8 to 1.25."""
    rate: float
    """Factor on the speed at which events repeat, about 0.7 to 1.4."""
    count: int
    """Number of events, if the class has countable ones, 1 to 5."""
    level_db: float
    """Peak level in dB below full scale, -18 to -2."""
    reverb_s: float
    """Decay time of the room, 0 (dry) to 0.6 s."""


def draw_params(rng: Rng) -> Params:
    """Draw one clip's parameters."""
    return Params(
        pitch=float(2 ** rng.uniform(-0.32, 0.32)),
        rate=float(2 ** rng.uniform(-0.5, 0.5)),
        count=int(rng.integers(1, 6)),
        level_db=float(rng.uniform(-18, -2)),
        reverb_s=float(rng.choice([0.0, 0.0, 0.15, 0.3, 0.6])),
    )


# --- building blocks ------------------------------------------------------------------------------


def _time(seconds: float) -> Samples:
    return np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE


def _tone(frequency: Samples | float, t: Samples) -> Samples:
    """A sine whose frequency (Hz) may change with time."""
    return np.sin(2 * np.pi * np.cumsum(np.broadcast_to(frequency, t.shape)) / SAMPLE_RATE)


def _noise(rng: Rng, n: int, low: float, high: float, tilt: float = 0.0) -> Samples:
    """Gaussian noise between two frequencies (Hz), `tilt` dB per octave, unit peak."""
    spectrum = np.fft.rfft(rng.standard_normal(n))
    frequency = np.fft.rfftfreq(n, 1 / SAMPLE_RATE)
    gain = 1 / (1 + (low / np.maximum(frequency, 1.0)) ** 8) / (1 + (frequency / high) ** 8)
    gain *= (np.maximum(frequency, 20.0) / 1000.0) ** (tilt / 6.02)
    return _normalize(np.fft.irfft(spectrum * gain, n))


def _decay(t: Samples, attack: float, release: float) -> Samples:
    """Linear attack, exponential release (time constants in seconds)."""
    return np.minimum(t / attack, 1.0) * np.exp(-np.maximum(t - attack, 0) / release)


def _window(t: Samples, edge: float = 0.01) -> Samples:
    """Fade in and out over `edge` seconds."""
    return np.clip(np.minimum(t, t[-1] - t) / edge, 0.0, 1.0)


def add_event(out: Samples, event: Samples, at: float, gain: float, rate: int) -> None:
    """Add `gain * event` to `out` from `at` seconds on, as far as it fits."""
    start = round(at * rate)
    stop = min(len(out), start + len(event))
    if start < stop:
        out[start:stop] += gain * event[: stop - start]


def _repeat(
    rng: Rng,
    seconds: float,
    every: float,
    length: float,
    event: Callable[[Samples], Samples],
    count: float = np.inf,
    jitter: float = 0.06,
) -> Samples:
    """Events every `every` seconds from a random start, `count` of them or until the end.

    `event` makes one event from the times of its samples, 0 to `length` seconds.
    """
    out = np.zeros(round(seconds * SAMPLE_RATE))
    at = float(rng.uniform(0.05, 0.25))
    placed = 0
    while at < seconds - 0.1 and placed < count:
        add_event(out, event(_time(length)), at, float(rng.uniform(0.8, 1.0)), SAMPLE_RATE)
        at += every * float(1 + rng.uniform(-jitter, jitter))
        placed += 1
    return out


# --- the classes ----------------------------------------------------------------------------------


def bark(rng: Rng, seconds: float, p: Params) -> Samples:
    def event(t: Samples) -> Samples:
        f0 = 430 * p.pitch * (1.25 - 0.6 * t / t[-1])
        voice = sum(_tone(f0 * k, t) / k**0.6 for k in range(1, 9))
        rough = 0.5 * _noise(rng, len(t), 500, 3000)
        return (voice / 4 + rough) * _decay(t, 0.015, 0.07)

    return _repeat(rng, seconds, 0.55 / p.rate, 0.22, event, count=p.count + 1)


def chirp(rng: Rng, seconds: float, p: Params) -> Samples:
    def event(t: Samples) -> Samples:
        sweep = 3000 * p.pitch * (1 + 0.45 * np.sin(np.pi * t / t[-1]))
        return _tone(sweep, t) * _window(t, 0.02)

    return _repeat(rng, seconds, 0.19 / p.rate, 0.09, event, jitter=0.25)


def siren(rng: Rng, seconds: float, p: Params) -> Samples:
    t = _time(seconds)
    phase = 2 * np.pi * (0.7 * p.rate * t + rng.uniform())
    f0 = 850 * p.pitch * 2 ** (0.45 * np.sin(phase))
    return (_tone(f0, t) + 0.4 * _tone(2 * f0, t) + 0.2 * _tone(3 * f0, t)) * _window(t, 0.05)


def engine(rng: Rng, seconds: float, p: Params) -> Samples:
    t = _time(seconds)
    f0 = 48 * p.pitch * (1 + 0.06 * np.sin(2 * np.pi * 0.5 * p.rate * t))
    hum = sum(_tone(f0 * k, t) / k**0.5 for k in range(1, 14))
    return (hum / 5 + 0.12 * _noise(rng, len(t), 60, 900)) * _window(t, 0.05)


def rain(rng: Rng, seconds: float, p: Params) -> Samples:
    n = round(seconds * SAMPLE_RATE)
    out = 0.5 * _noise(rng, n, 1200 * p.pitch, 7500, tilt=1.0)
    for _ in range(int(45 * p.rate * seconds)):
        t = _time(0.012)
        drop = _noise(rng, len(t), 2500, 7500) * _decay(t, 0.001, 0.003)
        at, gain = float(rng.uniform(0, seconds)), float(rng.uniform(0.2, 0.7))
        add_event(out, drop, at, gain, SAMPLE_RATE)
    return out * _window(_time(seconds), 0.1)


def wind(rng: Rng, seconds: float, p: Params) -> Samples:
    t = _time(seconds)
    gust = 0.45 + 0.55 * np.sin(2 * np.pi * (0.35 * p.rate * t + rng.uniform())) ** 2
    howl = _noise(rng, len(t), 220 * p.pitch, 420 * p.pitch)
    return (howl + 0.25 * _noise(rng, len(t), 60, 800, tilt=-3)) * gust * _window(t, 0.1)


def church_bell(rng: Rng, seconds: float, p: Params) -> Samples:
    def event(t: Samples) -> Samples:
        partials = [(0.5, 0.5), (1.0, 1.0), (1.19, 0.7), (1.5, 0.5), (2.0, 0.7), (2.74, 0.4)]
        ringing = (
            gain * _tone(420 * p.pitch * ratio, t) * _decay(t, 0.004, 1.1 / ratio**0.8)
            for ratio, gain in partials
        )
        return np.sum(list(ringing), axis=0)

    return _repeat(rng, seconds, 1.5 / p.rate, min(seconds, 3.0), event)


def tick_tock(rng: Rng, seconds: float, p: Params) -> Samples:
    beats = iter(range(10**6))

    def event(t: Samples) -> Samples:
        f0 = (2100 if next(beats) % 2 == 0 else 1500) * p.pitch
        click = _tone(f0, t) + 0.5 * _noise(rng, len(t), 1500, 6000)
        return click * _decay(t, 0.001, 0.006)

    return _repeat(rng, seconds, 0.42 / p.rate, 0.03, event, jitter=0.01)


def telephone(rng: Rng, seconds: float, p: Params) -> Samples:
    def event(t: Samples) -> Samples:
        bells = _tone(1750 * p.pitch, t) + _tone(2150 * p.pitch, t) + 0.4 * _tone(4100 * p.pitch, t)
        return bells * (np.sin(2 * np.pi * 11 * p.rate * t) ** 2) * _window(t, 0.02)

    return _repeat(rng, seconds, 1.15, 0.8, event)


def knock(rng: Rng, seconds: float, p: Params) -> Samples:
    def event(t: Samples) -> Samples:
        body = _tone(170 * p.pitch, t) + 0.6 * _tone(390 * p.pitch, t)
        return (body + 0.5 * _noise(rng, len(t), 200, 1500)) * _decay(t, 0.001, 0.022)

    return _repeat(rng, seconds, 0.27 / p.rate, 0.12, event, count=p.count + 3)


def drip(rng: Rng, seconds: float, p: Params) -> Samples:
    def event(t: Samples) -> Samples:
        return _tone(800 * p.pitch * (1 + 9 * t), t) * _decay(t, 0.003, 0.02)

    return _repeat(rng, seconds, 0.62 / p.rate, 0.07, event, jitter=0.3)


def frog(rng: Rng, seconds: float, p: Params) -> Samples:
    def event(t: Samples) -> Samples:
        pulses = np.maximum(np.sin(2 * np.pi * 38 * p.rate * t), 0) ** 3
        voice = _tone(520 * p.pitch, t) + 0.8 * _tone(1150 * p.pitch, t)
        return voice * pulses * _window(t, 0.05)

    return _repeat(rng, seconds, 0.75, 0.38, event, count=p.count + 2)


def cricket(rng: Rng, seconds: float, p: Params) -> Samples:
    t = _time(seconds)
    trill = np.maximum(np.sin(2 * np.pi * 28 * t), 0) ** 2
    phrase = (np.sin(2 * np.pi * (2.2 * p.rate * t + rng.uniform())) > -0.2).astype(float)
    phrase = np.convolve(phrase, np.ones(160) / 160, mode="same")
    return _tone(4600 * p.pitch**0.5, t) * trill * phrase


def explosion(rng: Rng, seconds: float, p: Params) -> Samples:
    def event(t: Samples) -> Samples:
        boom = _noise(rng, len(t), 25, 160 * p.pitch, tilt=-2) * _decay(t, 0.01, 0.7)
        crack = _noise(rng, len(t), 80, 3500, tilt=-3) * _decay(t, 0.002, 0.18)
        return boom + 0.9 * crack

    return _repeat(rng, seconds, 1.9 / p.rate, min(seconds, 2.5), event, count=min(p.count, 2))


def beep(rng: Rng, seconds: float, p: Params) -> Samples:
    def event(t: Samples) -> Samples:
        return _tone(1000 * p.pitch, t) * _window(t, 0.005)

    return _repeat(rng, seconds, 0.4 / p.rate, 0.16, event, jitter=0.0)


def train_horn(rng: Rng, seconds: float, p: Params) -> Samples:
    def event(t: Samples) -> Samples:
        chord = sum(_tone(f0 * p.pitch * k, t) / k for f0 in (277, 330, 415) for k in range(1, 6))
        return chord * _window(t, 0.06)

    return _repeat(rng, seconds, 1.2 / p.rate, 0.9 / p.rate, event, count=p.count)


@dataclass(frozen=True)
class SoundClass:
    """One class: its AudioSet name and id, the words for captions, and the synthesizer."""

    name: str
    mid: str
    subject: str
    """Noun phrase with an article, for captions ("a dog")."""
    verb: str
    """Third person ("barks")."""
    synthesize: Callable[[Rng, float, Params], Samples]


CLASSES: tuple[SoundClass, ...] = (
    SoundClass("Bark", "/m/05tny_", "a dog", "barks", bark),
    SoundClass("Chirp, tweet", "/m/07pggtn", "a bird", "chirps", chirp),
    SoundClass("Siren", "/m/03kmc9", "a siren", "wails", siren),
    SoundClass("Engine", "/m/02mk9", "an engine", "runs", engine),
    SoundClass("Rain", "/m/06mb1", "rain", "falls", rain),
    SoundClass("Wind", "/m/03m9d0z", "wind", "blows", wind),
    SoundClass("Church bell", "/m/03w41f", "a church bell", "tolls", church_bell),
    SoundClass("Tick-tock", "/m/07qjznl", "a clock", "ticks", tick_tock),
    SoundClass("Telephone bell ringing", "/m/07pp8cl", "a telephone", "rings", telephone),
    SoundClass("Knock", "/m/07r4wb8", "somebody", "knocks on a wooden door", knock),
    SoundClass("Drip", "/m/07r5v4s", "water", "drips", drip),
    SoundClass("Frog", "/m/09ld4", "a frog", "croaks", frog),
    SoundClass("Cricket", "/m/09xqv", "a cricket", "trills", cricket),
    SoundClass("Explosion", "/m/014zdl", "an explosion", "booms", explosion),
    SoundClass("Beep, bleep", "/m/02fs_r", "an alarm", "beeps", beep),
    SoundClass("Train horn", "/m/0284vy3", "a train horn", "blows", train_horn),
)


def render(
    events: Sequence[SoundClass], seconds: float, params: Sequence[Params], rng: Rng
) -> NDArray[np.float32]:
    """Synthesize one clip: its events one after the other, then the room and the level.

    Args:
        events: one class, or two in the order in which they are heard.
        seconds: length of the clip.
        params: one per event; the first also gives level and room.
        rng: the clip's own generator.

    Returns:
        float32 [round(seconds * SAMPLE_RATE)], peak at `level_db`.
    """
    share = seconds / len(events)
    parts = [sound.synthesize(rng, share, p) for sound, p in zip(events, params, strict=True)]
    wave = np.resize(np.concatenate(list(map(_normalize, parts))), round(seconds * SAMPLE_RATE))
    if params[0].reverb_s > 0:
        t = _time(params[0].reverb_s)
        room = rng.standard_normal(len(t)) * np.exp(-6.9 * t / params[0].reverb_s)
        wet = fftconvolve(wave, room)[: len(wave)]
        wave = wave + 0.25 * _normalize(wet)
    floor = 10 ** (-66 / 20) * rng.standard_normal(len(wave))  # a microphone's noise
    wave = _normalize(wave) * 10 ** (params[0].level_db / 20) + floor
    return np.clip(wave, -1, 1).astype(np.float32)


def _normalize(wave: Samples) -> Samples:
    return wave / (np.abs(wave).max() + 1e-9)
