"""Residual vector quantization in training: straight-through gradients, averaged codebooks.

The codebooks are the buffers of Hugging Face's `EncodecModel`, updated in place, so that
`save_pretrained` writes what was trained.  Two differences from the `encodec` package: a re-seeded
code also gets its moving averages reset (there the averages overwrite the new vector in the same
step, so a dead code stays dead), and the commitment loss of the later streams reaches the encoder.

On several processes the codebooks learn from the global batch and are the same everywhere, to the
bit: k-means runs on the first process; counts, sums and the vectors that re-seed dead codes are
summed over all processes; everything else is computed from these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from training.distributed import World, gather_rows, sum_over_processes

ALONE = World(0, 1, torch.device("cpu"))
DEAD_CODE_THRESHOLD = 0.6
"""Share of the mean use below which a code is re-seeded: an unused code falls below it in 50 steps
(measured in `training/LOG.md`)."""


@dataclass
class Quantized:
    """What the quantizer returns for a batch."""

    latents: Tensor
    """[B, D, T], the sum of the chosen codes; gradients pass straight through."""
    codes: Tensor
    """int64 [K, B, T]"""
    commitment: Tensor
    """Scalar: mean over streams of the squared distance of residuals to their codes."""
    uses: Tensor | None
    """int64 [K, C]: how often the global batch chose each code; None without an update."""


class ResidualQuantizerTrainer(nn.Module):
    """Trains the codebooks of an `EncodecResidualVectorQuantizer` in place.

    Args:
        quantizer: the model's.
        decay: decay of the moving averages of counts and sums.
        dead_code_threshold: share of the mean use; a code whose average use is less is re-seeded.
        world: processes that train the same codebooks.
    """

    def __init__(
        self,
        quantizer: Any,
        decay: float = 0.99,
        dead_code_threshold: float = DEAD_CODE_THRESHOLD,
        world: World = ALONE,
    ) -> None:
        super().__init__()
        self.codebooks = [layer.codebook for layer in quantizer.layers]  # not owned: no parameters
        self.decay, self.dead_code_threshold, self.world = decay, dead_code_threshold, world

    @torch.no_grad()
    def start(self, latents: Tensor, generator: torch.Generator, iterations: int = 20) -> None:
        """Place every codebook by k-means on the residuals of `latents` [B, D, T]."""
        # Every process draws the seed, so that all generators stay alike; only the first uses it.
        seed = int(torch.randint(2**62, (1,), generator=generator))
        draws = torch.Generator().manual_seed(seed)
        residual = gather_rows(latents.transpose(1, 2).flatten(0, 1).float(), self.world)
        for book in self.codebooks:
            if self.world.is_first:
                centres, sizes = kmeans(residual, book.codebook_size, iterations, draws)
                book.embed.copy_(centres)
                book.cluster_size.copy_(sizes.clamp_min(1.0))
                book.embed_avg.copy_(centres * book.cluster_size[:, None])
                book.inited.fill_(1.0)
            if self.world.size > 1:
                for buffer in (book.embed, book.cluster_size, book.embed_avg, book.inited):
                    dist.broadcast(buffer, src=0)
            residual = residual - F.embedding(nearest(residual, book.embed), book.embed)

    def forward(self, latents: Tensor, generator: torch.Generator | None) -> Quantized:
        """Quantize and, given a generator, update the codebooks.

        Args:
            latents: float [B, D, T] from the encoder.
            generator: draws the vectors that re-seed dead codes, alike on all processes; None
                leaves the codebooks unchanged.
        """
        flat = latents.float().transpose(1, 2).flatten(0, 1)
        total = torch.zeros_like(flat)
        residual = flat
        codes, losses, uses = [], [], []
        for book in self.codebooks:
            chosen = nearest(residual.detach(), book.embed)
            vectors = F.embedding(chosen, book.embed)
            losses.append(F.mse_loss(residual, vectors))
            codes.append(chosen)
            if generator is not None:
                uses.append(self._update(book, residual.detach(), chosen, generator))
            total = total + vectors
            residual = residual - vectors
        straight = flat + (total - flat).detach()
        batch, _, frames = latents.shape
        return Quantized(
            straight.unflatten(0, (batch, frames)).transpose(1, 2),
            torch.stack(codes).unflatten(1, (batch, frames)),
            torch.stack(losses).mean(),
            torch.stack(uses).long() if uses else None,
        )

    @torch.no_grad()
    def _update(
        self, book: Any, vectors: Tensor, chosen: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Update the codes; returns how often the global batch chose each code, float [C]."""
        n, world = len(vectors), self.world
        uses = torch.bincount(chosen, minlength=book.codebook_size).to(vectors)
        sums = torch.zeros_like(book.embed).index_add_(0, chosen, vectors)
        both = sum_over_processes(torch.cat([uses[:, None], sums], dim=1), world)
        uses, sums = both[:, 0], both[:, 1:]
        book.cluster_size.lerp_(uses, 1 - self.decay)
        book.embed_avg.lerp_(sums, 1 - self.decay)
        mean = n * world.size / book.codebook_size
        dead = book.cluster_size < self.dead_code_threshold * mean
        n_dead = int(dead.sum())
        if n_dead:
            # Take different vectors of the global batch as long as there are enough: which of two
            # equal codes is chosen depends on rounding.  Each process fills in the vectors of its
            # own part, and zeros elsewhere.
            order = torch.randperm(n * world.size, generator=generator)
            picks = order.repeat(-(-n_dead // len(order)))[:n_dead]
            picks = picks.to(vectors.device) - n * world.rank
            mine = (picks >= 0) & (picks < n)
            seeds = vectors[picks.clamp(0, n - 1)] * mine[:, None]
            # Start at the mean use: with less, the code would be re-seeded again at once.
            book.cluster_size[dead] = mean
            book.embed_avg[dead] = sum_over_processes(seeds, world) * mean
        book.embed.copy_(book.embed_avg / book.cluster_size[:, None])
        return uses


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
    order = torch.randperm(n, generator=generator).to(vectors.device)
    centres = vectors[order.repeat(-(-n_clusters // n))[:n_clusters]].clone()
    sizes = torch.zeros(n_clusters)
    for _ in range(iterations):
        chosen = nearest(vectors, centres)
        sizes = torch.bincount(chosen, minlength=n_clusters).to(vectors)
        sums = torch.zeros_like(centres).index_add_(0, chosen, vectors)
        full = sizes > 0
        centres[full] = sums[full] / sizes[full, None]
    return centres, sizes


def count_uses(codes: Tensor, codebook_size: int) -> Tensor:
    """How often each code occurs: int64 [K, ...] -> int64 [K, C]."""
    return torch.stack(
        [torch.bincount(stream, minlength=codebook_size) for stream in codes.flatten(1)]
    )


def usage(uses: Tensor) -> tuple[list[float], list[float]]:
    """Per stream: share of codes used at least once, and perplexity (exp of the entropy in nats).

    Args:
        uses: int64 [K, C], some in every stream.
    """
    counts = uses.double()
    p = counts / counts.sum(1, keepdim=True)
    entropy = -torch.special.xlogy(p, p).sum(1)
    return (counts > 0).double().mean(1).tolist(), entropy.exp().tolist()
