"""PaSST, the backbone of KL: AudioSet's 527 labels from a transformer over mel patches.

Koutini et al., "Efficient training of audio transformers with patchout" (2021).  Front end and
network are in plain torch, with the names of the released weights, and give the values of
hear21passt gives.  That package downloads weights without asking, prints, and needs timm.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn

from common.audio import Wave
from training.evaluation.metrics.backbones.backbone import (
    Embeddings,
    MissingBackbone,
    file_hash,
    load_network,
)

RATE = 32_000
FFT, WINDOW, HOP = 1024, 800, 320
MELS, MEL_HIGH = 128, 15_000.0
HEAD = 64
"""Values per attention head."""
STRIDE = 10
"""Stride of the patches, in both directions."""
SHORTEST = round(0.15 * RATE)
"""A remainder of a clip of at most this many samples is skipped, as in the reference code."""


def log_mel(wave: Tensor) -> Tensor:
    """Waveform float32 [S] to a normalized log-mel spectrogram [MELS, frames] of 10 ms frames."""
    emphasized = wave[1:] - 0.97 * wave[:-1]
    window = torch.hann_window(WINDOW, periodic=False, device=wave.device)
    spectrum = torch.stft(emphasized, FFT, HOP, WINDOW, window, return_complex=True)
    banks, _ = torchaudio.compliance.kaldi.get_mel_banks(
        MELS, FFT, RATE, 0.0, MEL_HIGH, vtln_low=100.0, vtln_high=-500.0, vtln_warp_factor=1.0
    )
    banks = F.pad(banks, (0, 1)).to(wave.device)
    mel = banks @ (spectrum.real**2 + spectrum.imag**2)
    return ((mel + 1e-5).log() + 4.5) / 5


class Attention(nn.Module):
    """Self-attention with one matrix for queries, keys and values."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] to [B, L, D]."""
        qkv = self.qkv(x).unflatten(-1, (3, -1, HEAD)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, hidden), "fc2": nn.Linear(hidden, dim)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Transformer(nn.Module):
    """PaSST without patchout, which is only used in training; sizes follow the weights."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        dim, inside, height, width = state["patch_embed.proj.weight"].shape
        depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
        labels = len(state["head.1.weight"])
        projection = nn.Conv2d(inside, dim, (height, width), STRIDE)
        self.patch_embed = nn.ModuleDict({"proj": projection})
        self.cls_token = nn.Parameter(torch.empty_like(state["cls_token"]))
        self.dist_token = nn.Parameter(torch.empty_like(state["dist_token"]))
        self.new_pos_embed = nn.Parameter(torch.empty_like(state["new_pos_embed"]))
        self.freq_new_pos_embed = nn.Parameter(torch.empty_like(state["freq_new_pos_embed"]))
        self.time_new_pos_embed = nn.Parameter(torch.empty_like(state["time_new_pos_embed"]))
        hidden = len(state["blocks.0.mlp.fc1.weight"])
        self.blocks = nn.Sequential(*(Block(dim, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, labels))
        if "head_dist.weight" in state:  # only used in training: not part of the logits
            self.head_dist = nn.Linear(dim, labels)

    def forward(self, mel: Tensor) -> Tensor:
        """Spectrograms [B, MELS, frames] to logits [B, labels]."""
        x = self.patch_embed["proj"](mel[:, None])
        x = x + self.time_new_pos_embed[..., : x.shape[-1]] + self.freq_new_pos_embed
        x = x.flatten(2).transpose(1, 2)
        tokens = torch.cat((self.cls_token, self.dist_token), 1) + self.new_pos_embed
        x = self.norm(self.blocks(torch.cat((tokens.expand(len(x), -1, -1), x), 1)))
        return self.head((x[:, 0] + x[:, 1]) / 2)


class PaSST:
    """The backbone of KL; `embed` gives the label probabilities of each window."""

    sample_rate = RATE

    def __init__(self, weights: Path, window_s: int = 10, device: str = "cpu") -> None:
        """
        Args:
            weights: `passt-s-f128-p16-s10-ap.476-swa.pt` for windows of 10 s, or
                `passt-s-f128-20sec-p16-s10-ap.474-swa.pt` for 20 s.
            window_s: longer clips are cut into windows of this many seconds.

        Raises:
            MissingBackbone: no weights, or weights for another window.
        """
        self.name = f"passt-{window_s}s"
        self.model, state = load_network(self.name, weights, Transformer, device)
        patch = state["patch_embed.proj.weight"].shape[-1]
        columns = (window_s * RATE // HOP - patch) // STRIDE + 1
        reach = state["time_new_pos_embed"].shape[-1]
        # The released 20 s model has one column more than this formula gives.
        if reach not in (columns, columns + 1):
            raise MissingBackbone(
                f"{self.name}: {weights} has positions for {reach} columns, expected {columns}: "
                "weights for another window"
            )
        self.device = device
        self.window = window_s * RATE
        self.facts = {
            "weights": weights.name,
            "weights_sha256": file_hash(weights),
            "window_s": window_s,
            "hop_s": window_s,
            "output": "softmax",
        }

    @torch.inference_mode()
    def embed(self, wave: Wave) -> Embeddings:
        """Waveform at 32 kHz to probabilities float32 [windows, 527].

        A remainder of up to 0.15 s is skipped; a whole clip that short is padded with silence.
        """
        whole = torch.from_numpy(wave).float().to(self.device)
        parts = [part for part in whole.split(self.window) if len(part) > SHORTEST]
        if not parts:
            parts = [F.pad(whole, (0, SHORTEST + 1 - len(whole)))]
        logits = torch.cat([self.model(log_mel(part)[None]) for part in parts])
        return logits.softmax(-1).cpu().numpy()
