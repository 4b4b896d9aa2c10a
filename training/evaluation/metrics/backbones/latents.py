"""Two backbones without download: latents of our codec, and multi-scale mel statistics."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from common.audio import Wave
from common.codec import WINDOW_S, Codec
from common.mel import mel_filterbank
from training.evaluation.metrics.backbones.backbone import Embeddings


class CodecLatents:
    """The codec's encoder before quantization: a vector per frame (20 ms in the paper's codecs)."""

    name = "codec-latents"

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.sample_rate = codec.sample_rate
        self.facts = {
            "weights_sha256": codec.codec_id,
            "window_s": WINDOW_S,
            "hop_s": codec.hop / codec.sample_rate,
        }

    def embed(self, wave: Wave) -> Embeddings:
        """Waveform to float32 [frames, D], encoded in pieces of 30 s."""
        size = round(WINDOW_S * self.codec.frame_rate) * self.codec.hop
        parts = torch.from_numpy(wave).float().split(size)
        latents = [self.codec.latents(part[None])[0].T.cpu() for part in parts]
        return torch.cat(latents).numpy()


class MelStatistics:
    """Mean and standard deviation of log-mel bands at three resolutions, for each second of sound.

    They depend on the level: the bands are in absolute units, with a floor at -80 dBFS.
    """

    name = "mel-statistics"
    scales = (512, 1024, 2048)
    """STFT windows in samples; hops are half as long."""
    n_mels = 24
    floor = 1e-8

    def __init__(self, sample_rate: int = 16_000) -> None:
        self.sample_rate = sample_rate
        self.banks = {n: mel_filterbank(sample_rate, n, self.n_mels) for n in self.scales}
        self.facts = {
            "window_s": 1.0,
            "hop_s": 0.5,
            "scales": "/".join(map(str, self.scales)),
            "n_mels": self.n_mels,
        }

    def embed(self, wave: Wave) -> Embeddings:
        """Waveform to float32 [windows, 2 * scales * n_mels]; at least one window."""
        rate = self.sample_rate
        starts = range(0, max(1, len(wave) - rate + 1), rate // 2)
        return np.stack([self._describe(wave[start : start + rate]) for start in starts])

    def _describe(self, second: Wave) -> NDArray[np.float32]:
        found = []
        for n, bank in self.banks.items():
            padded = np.pad(np.asarray(second, np.float64), (0, max(0, n - len(second))))
            frames = np.lib.stride_tricks.sliding_window_view(padded, n)[:: n // 2]
            window = np.hanning(n)
            power = np.abs(np.fft.rfft(frames * window, axis=1)) ** 2 / window.sum() ** 2
            mel = np.log10(power @ bank.T + self.floor)
            found += [mel.mean(axis=0), mel.std(axis=0)]
        return np.concatenate(found).astype(np.float32)
