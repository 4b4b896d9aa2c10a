"""Reconstruction losses and distances of the codec (EnCodec, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MultiScaleMelLoss(nn.Module):
    """Distance of log-mel and mel magnitudes over several STFT windows.

    For each window w: hop w / 4, min(64, w / 8) mel bands, L1 of magnitudes plus L1 of their
    natural logarithms; the mean over windows.
    """

    def __init__(self, sample_rate: int, windows: Sequence[int], floor: float = 1e-3):
        super().__init__()
        self.windows = tuple(windows)
        self.floor = floor
        for window in self.windows:
            self.register_buffer(f"hann_{window}", torch.hann_window(window), persistent=False)
            bank = mel_filterbank(sample_rate, window, min(64, max(4, window // 8)))
            self.register_buffer(f"bank_{window}", bank, persistent=False)

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
            total = total + F.l1_loss(a, b)
            total = total + F.l1_loss(a.clamp_min(self.floor).log(), b.clamp_min(self.floor).log())
        return total / len(self.windows)


def mel_filterbank(sample_rate: int, n_fft: int, n_mels: int) -> Tensor:
    """Triangular filters on the HTK mel scale, float32 [n_mels, n_fft // 2 + 1], rows sum to 1."""
    top = 2595 * torch.log10(torch.tensor(1 + sample_rate / 2 / 700, dtype=torch.float64))
    edges = 700 * (10 ** (torch.linspace(0, 1, n_mels + 2, dtype=torch.float64) * top / 2595) - 1)
    frequency = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    rising = (frequency - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequency) / (edges[2:] - edges[1:-1])[:, None]
    bank = torch.minimum(rising, falling).clamp_min(0)
    return (bank / bank.sum(1, keepdim=True).clamp_min(1e-9)).float()


def si_sdr(estimate: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB, per row of [B, S]."""
    target = target - target.mean(-1, keepdim=True)
    estimate = estimate - estimate.mean(-1, keepdim=True)
    scale = (estimate * target).sum(-1, keepdim=True) / (target.pow(2).sum(-1, keepdim=True) + 1e-8)
    projection = scale * target
    noise = estimate - projection
    return 10 * torch.log10((projection.pow(2).sum(-1) + 1e-8) / (noise.pow(2).sum(-1) + 1e-8))
