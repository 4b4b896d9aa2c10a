"""Losses of codec training, and SI-SDR (EnCodec, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.mel import mel_filterbank
from training.codec.discriminator import Verdict

WAVEFORM_WEIGHTS = {"time": 0.1, "mel": 2.0, "adversarial": 4.0, "feature": 4.0}
"""Weight of each loss on waveforms: L1 of waveforms, multi-scale mel distance, hinge loss, feature
matching. audiocraft's; the balancer makes them shares of the gradient."""
COMMITMENT_WEIGHT = 1.0
"""Weight of the loss that pulls latents to their codes. It is outside the balancer, which weighs
gradients at the decoder's output."""
MEL_WINDOWS = (64, 128, 256, 512, 1024, 2048)
"""STFT windows of the mel loss, samples."""


def shortest_input(windows: Sequence[int] = MEL_WINDOWS) -> int:
    """Samples that `MultiScaleMelLoss` needs: STFTs pad by reflecting half a window."""
    return max(windows) // 2 + 1


class MultiScaleMelLoss(nn.Module):
    """Distance of log-mel and mel magnitudes over several STFT windows.

    For each window w: hop w / 4, min(64, w / 8) mel bands, L1 of magnitudes, L1 of their natural
    logarithms, and half the mean square of the latter (EnCodec, equation 3, has L1 and
    L2 as well).  L1 only is minimized by the median: a short tone in a quiet band would be lost.
    """

    def __init__(self, sample_rate: int, windows: Sequence[int] = MEL_WINDOWS) -> None:
        super().__init__()
        self.windows = tuple(windows)
        for window in self.windows:
            self.register_buffer(f"hann_{window}", torch.hann_window(window), persistent=False)
            bands = min(64, max(4, window // 8))
            bank = torch.from_numpy(mel_filterbank(sample_rate, window, bands))
            bank = bank / bank.sum(1, keepdim=True).clamp_min(1e-9)  # a band's mean magnitude
            self.register_buffer(f"bank_{window}", bank.float(), persistent=False)

    def mel(self, wav: Tensor, window: int) -> Tensor:
        """Mel magnitudes [B, n_mels, frames] of wav [B, S]."""
        hann = getattr(self, f"hann_{window}")
        spectrum = torch.stft(
            wav, window, window // 4, window=hann, normalized=True, return_complex=True
        )
        # The epsilon keeps the magnitude's gradient finite where the spectrum is zero.
        magnitude = (spectrum.real.pow(2) + spectrum.imag.pow(2) + 1e-12).sqrt()
        return getattr(self, f"bank_{window}") @ magnitude

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Scalar distance between two batches of waveforms [B, S]."""
        total = estimate.new_zeros(())
        for window in self.windows:
            a, b = self.mel(estimate, window), self.mel(target, window)
            # Added, not clamped: a band that the decoder leaves silent must keep its gradient.
            gap = (a + 1e-3).log() - (b + 1e-3).log()
            total = total + F.l1_loss(a, b) + gap.abs().mean() + 0.5 * gap.square().mean()
        return total / len(self.windows)


def si_sdr(estimate: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB, per row of [B, S]."""
    target = target - target.mean(-1, keepdim=True)
    estimate = estimate - estimate.mean(-1, keepdim=True)
    scale = (estimate * target).sum(-1, keepdim=True) / (target.pow(2).sum(-1, keepdim=True) + 1e-8)
    projection = scale * target
    noise = estimate - projection
    return 10 * torch.log10((projection.pow(2).sum(-1) + 1e-8) / (noise.pow(2).sum(-1) + 1e-8))


def discriminator_loss(real: Verdict, fake: Verdict) -> Tensor:
    """Hinge: mean over windows of max(0, 1 - D(x)) + max(0, 1 + D(x^)).

    It is 2 if the discriminator distinguishes nothing, 0 if it distinguishes all by a margin.
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
    of the L1 distance between feature maps, divided by the level of the real ones.

    Args:
        levels: `feature_levels(real)`, averaged over all processes.
    """
    gaps = [
        (y.float() - x.detach().float()).abs().mean()
        for x, y in zip(real.features, fake.features, strict=True)
    ]
    return (torch.stack(gaps) / levels.clamp_min(1e-8)).mean()
