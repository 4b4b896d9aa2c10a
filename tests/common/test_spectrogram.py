"""The picture of a sound: its pitch, its size, and silence."""

import numpy as np
import pytest

from common.spectrogram import BANDS, FRAMES, spectrogram


@pytest.mark.parametrize("rate", [8000, 16_000, 32_000])
def test_a_tone_is_a_line_at_its_pitch(rate: int):
    picture = spectrogram(np.sin(2 * np.pi * 2000 * np.arange(2 * rate) / rate), rate)
    assert picture.max() == 1 and picture.min() >= 0 and picture.dtype == np.float32
    mel = np.log10(1 + np.array([2000, rate / 2]) / 700)
    row = picture[:, picture.shape[1] // 2].argmax()
    assert BANDS - 1 - row == pytest.approx(BANDS * mel[0] / mel[1], abs=1.5)


@pytest.mark.parametrize("seconds", [0.001, 0.5, 3, 60])
def test_the_width_is_bounded(seconds: float):
    noise = np.random.default_rng(0).standard_normal(int(seconds * 16_000)).astype(np.float32)
    picture = spectrogram(noise, 16_000)
    assert picture.shape[0] == BANDS and 1 <= picture.shape[1] <= FRAMES


def test_silence_is_dark():
    assert not spectrogram(np.zeros(16_000, np.float32), 16_000).any()
