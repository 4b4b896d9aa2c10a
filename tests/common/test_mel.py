"""Mel filters: triangles that cover the band between their ends."""

import numpy as np

from common.mel import mel_filterbank


def test_every_band_has_a_filter_and_neighbours_sum_to_one():
    bank = mel_filterbank(16_000, 512, 48)
    assert bank.shape == (48, 257) and (bank >= 0).all() and (bank.sum(axis=1) > 0).all()
    frequency = np.fft.rfftfreq(512, 1 / 16_000)
    peaks = frequency[bank.argmax(axis=1)]
    assert (np.diff(peaks) >= 0).all()
    inside = (frequency > peaks[1]) & (frequency < peaks[-2])
    np.testing.assert_allclose(bank.sum(axis=0)[inside], 1, atol=1e-9)
