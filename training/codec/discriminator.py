"""Multi-scale STFT discriminator (EnCodec, section 3.4); its losses are in `losses.py`.

One network per STFT window takes real and imaginary parts as an image of two channels and returns a
field of logits.  The generator is also trained to match the feature maps of its layers.  Kernels
have 9 bins, where the paper writes 8, as in its authors' code: an odd number needs no lopsided
padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

_SLOPE = 0.2
_DILATIONS = (1, 2, 4)
"""Over frames, of the layers that halve the bins."""


class Verdict(NamedTuple):
    """The discriminator's outputs for a batch."""

    logits: list[Tensor]
    """[B, 1, frames, bins] for each window; above 0 is `real`."""
    features: list[Tensor]
    """[B, C, frames, bins] after each activation, all windows in a row."""


class WindowDiscriminator(nn.Module):
    """The network of one STFT window; hop window / 4, Hann, no padding.

    Args:
        window: samples.
        filters: channels of every layer.
    """

    hann: Tensor

    def __init__(self, window: int, filters: int) -> None:
        super().__init__()
        self.window = window
        self.register_buffer("hann", torch.hann_window(window), persistent=False)
        layers = [nn.Conv2d(2, filters, (3, 9), padding=(1, 4))]
        layers += [
            nn.Conv2d(filters, filters, (3, 9), stride=(1, 2), dilation=(d, 1), padding=(d, 4))
            for d in _DILATIONS
        ]
        layers.append(nn.Conv2d(filters, filters, 3, padding=1))
        verdict = nn.Conv2d(filters, 1, 3, padding=1)
        for layer in (*layers, verdict):
            # PyTorch's default lets the biases drown audio of an ordinary level.
            nn.init.kaiming_normal_(layer.weight, a=_SLOPE)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)
        self.verdict = weight_norm(verdict)

    def spectrum(self, wav: Tensor) -> Tensor:
        """[B, S] -> [B, 2, frames, bins], scaled so that white noise keeps its level; fp32."""
        with torch.autocast(wav.device.type, enabled=False):
            complex_ = torch.stft(
                wav.float(), self.window, self.window // 4, window=self.hann,
                center=False, return_complex=True,
            )  # fmt: skip
            scaled = torch.view_as_real(complex_) / self.hann.pow(2).sum().sqrt()
        return scaled.permute(0, 3, 2, 1)

    def forward(self, wav: Tensor) -> tuple[Tensor, list[Tensor]]:
        hidden = self.spectrum(wav)
        features = []
        for layer in self.layers:
            hidden = F.leaky_relu(layer(hidden), _SLOPE)
            features.append(hidden)
        return self.verdict(hidden), features


class MultiScaleDiscriminator(nn.Module):
    """A `WindowDiscriminator` per STFT window."""

    def __init__(self, windows: Sequence[int], filters: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(WindowDiscriminator(window, filters) for window in windows)

    def forward(self, wav: Tensor) -> Verdict:
        """Verdict on waveforms [B, S] of at least one window."""
        logits, features = [], []
        for scale in self.scales:
            scores, maps = scale(wav)
            logits.append(scores)
            features += maps
        return Verdict(logits, features)
