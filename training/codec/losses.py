"""Reconstruction losses and distances of the codec (EnCodec, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.mel import mel_filterbank

MEL_WINDOWS = (64, 128, 256, 512, 1024, 2048)
"""STFT windows of the mel loss, samples."""


def shortest_input(windows: Sequence[int] = MEL_WINDOWS) -> int:
    """Samples that `MultiScaleMelLoss` needs: STFTs pad by reflecting half a window."""
    return max(windows, default=0) // 2 + 1


class MultiScaleMelLoss(nn.Module):
    """Distance of log-mel and mel magnitudes over several STFT windows.

    For each window w: hop w / 4, min(64, w / 8) mel bands, L1 of magnitudes, L1 of their natural
    logarithms, and `squared` times the mean square of the latter (EnCodec, equation 3, has L1 and
    L2 as well).  L1 only would be content with the median: a short tone in a quiet band is lost.
    """

    def __init__(
        self,
        sample_rate: int,
        windows: Sequence[int] = MEL_WINDOWS,
        squared: float = 0.5,
        floor: float = 1e-3,
    ) -> None:
        super().__init__()
        self.windows = tuple(windows)
        self.squared = squared
        self.floor = floor
        for window in self.windows:
            self.register_buffer(f"hann_{window}", torch.hann_window(window), persistent=False)
            bank = torch.from_numpy(
                mel_filterbank(sample_rate, window, min(64, max(4, window // 8)))
            )
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
            gap = (a + self.floor).log() - (b + self.floor).log()
            total = total + F.l1_loss(a, b) + gap.abs().mean() + self.squared * gap.square().mean()
        return total / len(self.windows)


def si_sdr(estimate: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB, per row of [B, S]."""
    target = target - target.mean(-1, keepdim=True)
    estimate = estimate - estimate.mean(-1, keepdim=True)
    scale = (estimate * target).sum(-1, keepdim=True) / (target.pow(2).sum(-1, keepdim=True) + 1e-8)
    projection = scale * target
    noise = estimate - projection
    return 10 * torch.log10((projection.pow(2).sum(-1) + 1e-8) / (noise.pow(2).sum(-1) + 1e-8))
