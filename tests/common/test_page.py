"""Sounds on a page: MP3, whatever their rate."""

import base64
import io

import numpy as np
import pytest
import soundfile

from common.page import player


@pytest.mark.parametrize(
    ("rate", "played"), [(16_000, 16_000), (4000, 8000), (22_255, 22_050), (96_000, 48_000)]
)
def test_every_rate_can_be_played(rate: int, played: int):
    wave = np.sin(np.arange(rate) * 2 * np.pi * 200 / rate).astype(np.float32) / 2
    sound = player(wave, rate).split("base64,")[1].split('"')[0]
    read, found = soundfile.read(io.BytesIO(base64.b64decode(sound)))
    assert found == played and len(read) == pytest.approx(played, rel=0.2)
    assert np.abs(read).max() == pytest.approx(0.5, abs=0.1)
