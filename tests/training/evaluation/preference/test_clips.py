"""Pairs made alike: rate, length, loudness as BS.1770 measures it, bytes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyloudnorm
import pytest
import soundfile

from common.errors import AttuneError
from training.evaluation.preference.clips import equalize, read_clip, wav_bytes

RATE = 16000


def _noise(seconds: float, level: float, rate: int = RATE, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(round(seconds * rate))
    return (level * noise / np.abs(noise).max()).astype(np.float32)


def _lufs(content: bytes) -> float:
    wave, rate = soundfile.read(io.BytesIO(content))
    return float(pyloudnorm.Meter(rate).integrated_loudness(wave))


def test_both_are_equally_loud_long_and_fast() -> None:
    pair = (_noise(2.0, 0.02), RATE), (_noise(3.0, 0.9, 32000, seed=1), 32000)
    waves, reached = equalize(pair, RATE, -23.0)
    assert reached == pytest.approx(-23)
    files = [wav_bytes(wave, RATE) for wave in waves]
    assert len(files[0]) == len(files[1]) == 44 + 2 * 2 * RATE
    assert files[0][:44] == files[1][:44], "headers differ"
    for content in files:
        assert _lufs(content) == pytest.approx(-23, abs=0.05)
    assert all(wave[-1] == 0 for wave in waves), "a cut clip ends in a click"


def test_a_peak_that_holds_one_back_lowers_the_other() -> None:
    """Clicks reach full scale long before they are loud."""
    clicks = np.zeros(2 * RATE, np.float32)
    clicks[::4000] = 0.5
    pair = (clicks, RATE), (_noise(2.0, 0.5), RATE)
    for order in (pair, pair[::-1]):
        waves, reached = equalize(order, RATE, -15.0)
        assert reached is not None and reached < -20
        assert max(np.abs(wave).max() for wave in waves) == pytest.approx(10 ** (-1 / 20), rel=1e-3)
        loudness = [_lufs(wav_bytes(wave, RATE)) for wave in waves]
        assert loudness == pytest.approx([reached] * 2, abs=0.1)


def test_silence_stays_silent_and_is_reported() -> None:
    pair = (np.zeros(RATE, np.float32), RATE), (_noise(1.0, 0.5), RATE)
    waves, reached = equalize(pair, RATE, -23.0)
    assert reached is None and not waves[0].any()
    assert _lufs(wav_bytes(waves[1], RATE)) == pytest.approx(-23, abs=0.05)


def test_a_file_has_a_header_and_samples_and_nothing_else() -> None:
    content = wav_bytes(_noise(0.5, 0.5), RATE)
    assert content[:4] == b"RIFF" and content[8:16] == b"WAVEfmt " and content[36:40] == b"data"
    assert int.from_bytes(content[40:44], "little") == len(content) - 44


def test_unusable_clips_are_named(tmp_path: Path) -> None:
    wave = _noise(0.5, 0.5)
    wave[7] = np.nan
    soundfile.write(tmp_path / "nan.wav", wave, RATE, subtype="FLOAT")
    (tmp_path / "page.wav").write_text("<html>")
    for name, words in (("nan", "NaN"), ("page", "unreadable"), ("gone", "missing")):
        with pytest.raises(AttuneError, match=rf"clip .*{name}\.wav: .*{words}"):
            read_clip(str(tmp_path / f"{name}.wav"))
