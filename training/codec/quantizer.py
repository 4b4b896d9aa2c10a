"""Residual vector quantization in training: straight-through gradients, averaged codebooks.

The codebooks are the buffers of Hugging Face's `EncodecModel`, updated in place, so that what was
trained is what `save_pretrained` writes.  Notable against the `encodec` package: a re-seeded code
also gets its moving averages reset (there they overwrite the new vector in the same step, so a dead
code stays dead), and the commitment loss of the later streams reaches the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class Quantized:
    """What the quantizer returns for a batch."""

    latents: Tensor
    """[B, D, T], the sum of the chosen codes; gradients pass straight through."""
    codes: Tensor
    """int64 [K, B, T]"""
    commitment: Tensor
    """Scalar: mean over streams of the squared distance of residuals to their codes."""


class ResidualQuantizerTrainer(nn.Module):
    """Trains the codebooks of an `EncodecResidualVectorQuantizer` in place."""

    def __init__(self, quantizer: Any, decay: float, dead_code_threshold: float):
        super().__init__()
        self.codebooks = [layer.codebook for layer in quantizer.layers]  # not owned: no parameters
        self.decay = decay
        self.dead_code_threshold = dead_code_threshold

    @torch.no_grad()
    def start(self, latents: Tensor, generator: torch.Generator, iterations: int = 20) -> None:
        """Place every codebook by k-means on the residuals of `latents` [B, D, T]."""
        residual = latents.transpose(1, 2).flatten(0, 1).float()
        for book in self.codebooks:
            centres, sizes = kmeans(residual, book.codebook_size, iterations, generator)
            book.embed.copy_(centres)
            book.cluster_size.copy_(sizes.clamp_min(1.0))
            book.embed_avg.copy_(centres * book.cluster_size[:, None])
            book.inited.fill_(1.0)
            residual = residual - F.embedding(nearest(residual, book.embed), book.embed)

    def forward(self, latents: Tensor, generator: torch.Generator | None) -> Quantized:
        """Quantize and, given a generator, update the codebooks.

        Args:
            latents: float [B, D, T] from the encoder.
            generator: draws the vectors that re-seed dead codes; None leaves the codebooks alone.
        """
        flat = latents.transpose(1, 2).flatten(0, 1)
        total = torch.zeros_like(flat)
        residual = flat
        codes, losses = [], []
        for book in self.codebooks:
            chosen = nearest(residual.detach(), book.embed)
            vectors = F.embedding(chosen, book.embed)
            losses.append(F.mse_loss(residual, vectors))
            codes.append(chosen)
            if generator is not None:
                self._update(book, residual.detach(), chosen, generator)
            total = total + vectors
            residual = residual - vectors
        straight = flat + (total - flat).detach()
        batch, _, frames = latents.shape
        return Quantized(
            straight.unflatten(0, (batch, frames)).transpose(1, 2),
            torch.stack(codes).unflatten(1, (batch, frames)),
            torch.stack(losses).mean(),
        )

    @torch.no_grad()
    def _update(
        self, book: Any, vectors: Tensor, chosen: Tensor, generator: torch.Generator
    ) -> None:
        uses = torch.bincount(chosen, minlength=book.codebook_size).to(vectors)
        sums = torch.zeros_like(book.embed).index_add_(0, chosen, vectors)
        book.cluster_size.lerp_(uses, 1 - self.decay)
        book.embed_avg.lerp_(sums, 1 - self.decay)
        dead = book.cluster_size < self.dead_code_threshold
        n_dead = int(dead.sum())
        if n_dead:
            picks = torch.randint(len(vectors), (n_dead,), generator=generator)
            # A fair chance to live: the average use, or it would be re-seeded again at once.
            share = max(len(vectors) / book.codebook_size, self.dead_code_threshold)
            book.cluster_size[dead] = share
            book.embed_avg[dead] = vectors[picks] * share
        book.embed.copy_(book.embed_avg / book.cluster_size[:, None])


def nearest(vectors: Tensor, embed: Tensor) -> Tensor:
    """Index of the nearest code for each vector: [N, D], [C, D] -> int64 [N]."""
    return (embed.pow(2).sum(1) - 2 * vectors @ embed.t()).argmin(dim=1)


def kmeans(
    vectors: Tensor, n_clusters: int, iterations: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from randomly picked vectors.

    Args:
        vectors: [N, D]; with N < n_clusters some vectors start several clusters.

    Returns:
        centres [n_clusters, D] and their sizes [n_clusters].
    """
    n = len(vectors)
    order = torch.randperm(n, generator=generator)
    centres = vectors[order.repeat(-(-n_clusters // n))[:n_clusters]].clone()
    sizes = torch.zeros(n_clusters)
    for _ in range(iterations):
        chosen = nearest(vectors, centres)
        sizes = torch.bincount(chosen, minlength=n_clusters).to(vectors)
        sums = torch.zeros_like(centres).index_add_(0, chosen, vectors)
        full = sizes > 0
        centres[full] = sums[full] / sizes[full, None]
    return centres, sizes


def codebook_usage(codes: Tensor, codebook_size: int) -> tuple[list[float], list[float]]:
    """Per stream: share of codes used at least once, and perplexity (2^entropy).

    Args:
        codes: int64 [K, ...].
    """
    used, perplexity = [], []
    for stream in codes.flatten(1):
        counts = torch.bincount(stream, minlength=codebook_size).float()
        p = counts[counts > 0] / counts.sum()
        used.append(float((counts > 0).float().mean()))
        perplexity.append(float(torch.exp(-(p * p.log()).sum())))
    return used, perplexity
