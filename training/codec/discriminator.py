"""Multi-scale STFT discriminator and its losses (EnCodec, section 3.4).

One network per STFT window looks at real and imaginary parts as an image of two channels and gives
a field of logits; what its layers make of a clip on the way is matched as well.  Kernels have 9
bins, where the paper writes 8, as in its authors' code: an odd number needs no lopsided padding.
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
    """What the discriminator makes of a batch."""

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


def discriminator_loss(real: Verdict, fake: Verdict) -> Tensor:
    """Hinge: mean over windows of max(0, 1 - D(x)) + max(0, 1 + D(x^)).

    2 where nothing is distinguished, 0 where everything is, by a margin.
    """
    terms = [
        F.relu(1 - x.float()).mean() + F.relu(1 + y.float()).mean()
        for x, y in zip(real.logits, fake.logits, strict=True)
    ]
    return torch.stack(terms).mean()


def adversarial_loss(fake: Verdict) -> Tensor:
    """The generator's hinge: mean over windows of max(0, 1 - D(x^))."""
    return torch.stack([F.relu(1 - logits.float()).mean() for logits in fake.logits]).mean()


def feature_levels(real: Verdict) -> Tensor:
    """Mean magnitude of each feature map [windows x layers], without gradient."""
    return torch.stack([feature.detach().float().abs().mean() for feature in real.features])


def feature_loss(real: Verdict, fake: Verdict, levels: Tensor) -> Tensor:
    """Relative feature matching (EnCodec, equation 2 of section 3.4): mean over windows and layers
    of the L1 distance between feature maps, each relative to the real ones' level.

    Args:
        levels: `feature_levels(real)`, of the global batch where there are several processes.
    """
    gaps = [
        (y.float() - x.detach().float()).abs().mean()
        for x, y in zip(real.features, fake.features, strict=True)
    ]
    return (torch.stack(gaps) / levels.clamp_min(1e-8)).mean()
