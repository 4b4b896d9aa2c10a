"""VGGish, the backbone of FAD: Google's input pipeline, and the network in plain torch.

The weights are from torchvggish's release (`vggish-10086976.pth`).  The code of torchvggish is not
used: its examples do not overlap, it ends in a ReLU that Google's network does not have, and it
applies PCA and 8-bit quantization by default.  All three change FAD.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.audio import Wave
from training.evaluation.metrics.backbones.backbone import (
    Embeddings,
    file_hash,
    load_network,
)

RATE = 16_000
WINDOW, HOP, FFT = 400, 160, 512
"""Window, hop and FFT in samples: 25 ms every 10 ms."""
MELS, MEL_LOW, MEL_HIGH = 64, 125.0, 7500.0
"""Number of mel bands, and their outer edges in Hz."""
OFFSET = 0.01
"""Added before the logarithm."""
EXAMPLE = 96
"""Frames of one example: 0.96 s."""
LEAST_PEAK = 0.1 / 32768
"""Google's code divides a clip by its peak or by 0.1, whichever is larger.  Its samples are 16-bit
integers, so every clip with a sample above zero gets a peak of 1."""
_POOLED = (True, True, False, True, False, True)
"""Whether a pooling follows each convolution."""
_BATCH = 64


@dataclass(frozen=True)
class Framing:
    """How a clip is cut into examples."""

    hop_s: float
    peak: bool
    """Divide a clip by its highest sample (not its largest magnitude) first."""
    whole_seconds: bool
    """Use an example only if it is followed by audio up to a full second."""


FRAMINGS = {
    "half": Framing(0.48, peak=False, whole_seconds=False),
    "google": Framing(0.5, peak=True, whole_seconds=True),
}
"""`half`: examples overlap by half, levels do not change.  `google`: clips are cut and scaled as in
Google's `frechet_audio_distance`, which MusicGen's FAD was measured with."""


def hertz_to_mel(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mel scale of HTK."""
    return 1127.0 * np.log1p(hertz / 700.0)


def mel_matrix() -> NDArray[np.float64]:
    """Triangular filters [FFT // 2 + 1, MELS], linear in mel (not in Hz), without 0 Hz."""
    bins = hertz_to_mel(np.linspace(0, RATE / 2, FFT // 2 + 1))[:, None]
    low, high = hertz_to_mel(np.array([MEL_LOW, MEL_HIGH]))
    edges = np.linspace(low, high, MELS + 2)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    weights = np.maximum(0, np.minimum(rising, falling))
    weights[0] = 0
    return weights


def log_mel(wave: Wave) -> NDArray[np.float64]:
    """log(mel magnitudes + 0.01) of whole 25 ms windows (periodic Hann): float64 [frames, MELS]."""
    frames = np.lib.stride_tricks.sliding_window_view(np.asarray(wave, np.float64), WINDOW)[::HOP]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi / WINDOW * np.arange(WINDOW))
    return np.log(np.abs(np.fft.rfft(frames * hann, FFT, axis=1)) @ mel_matrix() + OFFSET)


def examples(wave: Wave, framing: Framing) -> NDArray[np.float32]:
    """Log-mel examples of a clip at 16 kHz: float32 [n, EXAMPLE, MELS], n >= 1.

    A clip shorter than one example is padded with silence.
    """
    wave = np.asarray(wave, np.float64)
    if framing.peak:
        wave = wave / max(LEAST_PEAK, float(wave.max(initial=0.0)))
    least = RATE if framing.whole_seconds else (EXAMPLE - 1) * HOP + WINDOW
    wave = np.pad(wave, (0, max(0, least - len(wave))))
    hop = round(framing.hop_s * RATE / HOP)
    count = 1 + (len(wave) - least) // (hop * HOP)
    mel = log_mel(wave)
    windows = np.lib.stride_tricks.sliding_window_view(mel, EXAMPLE, axis=0)[::hop][:count]
    return windows.transpose(0, 2, 1).astype(np.float32)


class VGG(nn.Module):
    """The layers of VGGish, with torchvggish's names; widths follow the weights."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for pooled in _POOLED:
            out, inside = state[f"features.{len(layers)}.weight"].shape[:2]
            layers += [nn.Conv2d(inside, out, 3, padding=1), nn.ReLU()]
            if pooled:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        dense: list[nn.Module] = []
        for place in (0, 2, 4):
            out, inside = state[f"embeddings.{place}.weight"].shape
            dense += [nn.Linear(inside, out), nn.ReLU()]
        # Google's embedding is the last linear layer's output, without a ReLU.
        self.embeddings = nn.Sequential(*dense[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Examples [n, EXAMPLE, MELS] to [n, D]."""
        maps = self.features(x[:, None])
        # TensorFlow's order: time, frequency, channel.
        return self.embeddings(maps.permute(0, 2, 3, 1).flatten(1))


class VGGish:
    """The backbone of FAD; `embed` gives 128 values per example."""

    name = "vggish"
    sample_rate = RATE

    def __init__(self, weights: Path, framing: str = "half", device: str = "cpu") -> None:
        """
        Args:
            weights: `vggish-10086976.pth`.
            framing: a key of `FRAMINGS`.

        Raises:
            MissingBackbone: no weights, or weights of another network.
        """
        self.model, _ = load_network(self.name, weights, VGG, device)
        self.device = device
        self.framing = FRAMINGS[framing]
        self.facts: dict[str, Any] = {
            "weights": weights.name,
            "weights_sha256": file_hash(weights),
            "window_s": EXAMPLE * HOP / RATE,
            "framing": framing,
            **asdict(self.framing),
        }
        if self.framing.peak:
            self.facts["least_peak"] = LEAST_PEAK

    @torch.inference_mode()
    def embed(self, wave: Wave) -> Embeddings:
        """Waveform at 16 kHz to float32 [examples, 128]."""
        rows = torch.from_numpy(examples(wave, self.framing))
        parts = [self.model(part.to(self.device)).cpu() for part in rows.split(_BATCH)]
        return torch.cat(parts).numpy()
