"""One training step: forward, the objective, backward; over micro-batches if need be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from training.config import LMConfig
from training.data import Batch, purpose_rng
from training.distributed import World, gather_rows, sum_over_processes
from training.lm.losses import (
    contrastive_loss,
    pool,
    representation_regularization,
    similarity_correlation,
    stream_losses,
)
from training.lm.model import LanguageModel
from training.lm.patterns import delay, valid_steps


class TrainingStep:
    """Forward, loss and backward of one step, in micro-batches where a share does not fit at once.

    L_rr compares every clip of the global batch with every other, also across micro-batches, whose
    graphs do not fit into memory together.  So steps with rr make two passes over micro-batches:

    1. without graph: the pooled states h of all clips, L_rr(h) and its gradient g = dL_rr/dh, once;
    2. with graph, one micro-batch after the other: cross-entropy + sum(h * g), with g held fixed.
       The gradient of sum(h * g) with respect to the weights is g dh/dw, which is that of L_rr.

    The model has no dropout, so both passes see the same h.
    """

    def __init__(self, model: LanguageModel, config: LMConfig, world: World, seed: int) -> None:
        self._model = model
        self._config = config
        self._world = world
        self._seed = seed

    def __call__(self, batch: Batch, step: int) -> Outcome:
        """Leave the gradient of the global batch's objective in the parameters."""
        config, world = self._config, self._world
        dropped = dropped_text(
            self._seed, step, config.batch_size, config.cfg.dropout, config.cfg.granularity
        )
        chosen = np.ones_like(dropped) if config.rr.apply == "always" else dropped
        watched = bool(chosen.any())
        pulled = watched and config.rr.weight > 0
        # Every frame of every stream is a target: known before any micro-batch is.
        frames = sum_over_processes(batch.lengths.sum(), world).clamp(min=1)
        parts = micro_batches(batch, config.micro_batch)
        outcome = Outcome(float(dropped.mean()))
        pooled: list[tuple[Tensor, Tensor]] = []
        pull: Pull | None = None
        if pulled and len(parts) > 1:
            with torch.no_grad():
                for part in parts:
                    _, hidden, _ = self._forward(part, dropped)
                    pooled.append(self._pool(part, hidden))
            pull = self._regularize(pooled, chosen, outcome)
        for part in parts:
            if len(parts) > 1 and isinstance(self._model, FSDPModule):
                # FSDP reduces gradients over the processes once, after the last micro-batch.
                self._model.set_requires_gradient_sync(part is parts[-1])
            logits, hidden, targets = self._forward(part, dropped)
            shares = stream_losses(logits, targets)[0] / frames
            # FSDP averages gradients over processes; the objective is a sum over them.
            objective = (
                shares.mean() if config.stream_loss == "mean" else shares.sum()
            ) * world.size
            outcome.add_losses(shares.detach())
            if not pulled:
                if watched:
                    with torch.no_grad():
                        pooled.append(self._pool(part, hidden))
                objective.backward()
                continue
            # rr reads a view of the hidden states: the view's gradient is rr's part only, while the
            # hook on `hidden` sees the sum of both parts.  Their norms go into the log.
            states = hidden.view_as(hidden)
            states.retain_grad()
            whole: list[Tensor] = []
            hidden.register_hook(whole.append)
            audio, text = self._pool(part, states)
            if pull is None:  # one micro-batch: this pass is also the first
                pull = self._regularize([(audio.detach(), text)], chosen, outcome)
            assert pull is not None
            objective = objective + (audio * pull.clips[part.rows]).sum()
            if part is parts[-1]:
                objective = objective + pull.of_head()
            objective.backward()
            assert states.grad is not None
            of_rr, of_both = states.grad.float(), whole[0].float()
            outcome.add_gradients(of_rr / world.size, (of_both - of_rr) / world.size)
        if watched and not pulled:
            self._regularize(pooled, chosen, outcome)
        return outcome

    def _forward(
        self, part: MicroBatch, dropped: NDArray[np.bool_]
    ) -> tuple[Tensor, Tensor, Tensor]:
        return forward(self._model, part, dropped, self._config.precision, self._world)

    def _pool(self, part: MicroBatch, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled states of clips and prompts, both float32 `[b, D]`.

        To be called between forward and backward: under FSDP the root's weights are whole there.
        """
        how, batch = self._config.rr, part.batch
        mask = valid_steps(batch.lengths, self._model.arch.n_codebooks, hidden.shape[1])
        states = batch.text
        if how.text == "projected":
            with torch.no_grad(), _autocast(self._config.precision, batch.codes.device):
                states = self._model.text_projection(states)
        return pool(hidden, mask, how.pool), pool(states, batch.text_mask, how.pool)

    def _regularize(
        self,
        pooled: list[tuple[Tensor, Tensor]],
        chosen: NDArray[np.bool_],
        outcome: Outcome,
    ) -> Pull | None:
        """L_rr over the clips `chosen` of the global batch, and how the similarities correlate.

        Args:
            pooled: states of this process's clips and prompts, without graph.

        Returns:
            The gradient of what is weighted, L_rr or the contrastive loss, unless it weighs 0.
        """
        how, world = self._config.rr, self._world
        own, text = (torch.cat(rows) for rows in zip(*pooled, strict=True))
        own.requires_grad_(how.weight > 0)
        audio, places = own, torch.from_numpy(chosen).to(own.device)
        if how.scope == "global":
            audio, text = gather_rows(own, world), gather_rows(text, world)
        else:
            places = places.view(world.size, -1)[world.rank]
        audio, text = audio[places], text[places]
        objective = rr = representation_regularization(audio, text)
        outcome.rr = rr.detach()
        outcome.correlation = similarity_correlation(audio.detach(), text)
        if not how.weight:
            return None
        head = self._model.contrastive
        weights = [] if head is None else list(head.parameters())
        if head is not None:
            objective = contrastive_loss(*head(audio, text.detach()))
            outcome.contrastive = objective.detach()
        clips, *rest = torch.autograd.grad(how.weight * objective, [own, *weights])
        return Pull(clips, list(zip(weights, rest, strict=True)))


def dropped_text(
    seed: int, step: int, batch_size: int, dropout: float, granularity: str
) -> NDArray[np.bool_]:
    """Clips of a global batch that train without text, for guidance: bool `[batch_size]`.

    A function of (seed, step), so all processes agree and a resumed run repeats the draw.
    """
    rng = purpose_rng(seed, "cfg", step)
    if granularity == "batch":
        return np.full(batch_size, rng.random() < dropout)
    return rng.random(batch_size) < dropout


@dataclass(frozen=True)
class Pull:
    """Gradients of the weighted regularization, taken once for all micro-batches."""

    clips: Tensor
    """With respect to the pooled states of this process's clips, `[B, D]`."""
    head: list[tuple[Tensor, Tensor]]
    """The contrastive head's weights, each with its gradient: the same on all processes, which
    share the loss, as the mean that FSDP takes of them."""

    def of_head(self) -> Tensor | float:
        """What has these gradients: added to an objective, it hands them to the weights the way
        that FSDP expects."""
        return sum((weight * gradient).sum() for weight, gradient in self.head)


class Outcome:
    """What one step came to, still on the device."""

    def __init__(self, dropped: float) -> None:
        self._shares: Tensor | float = 0.0
        self.dropped = dropped
        """Share of the global batch that trained without text."""
        self.rr: Tensor | None = None
        """L_rr where it was taken, before its weight."""
        self.contrastive: Tensor | None = None
        """The contrastive loss where it was, before its weight."""
        self.correlation: Tensor | None = None
        """Of the two similarity matrices."""
        self.gradients: Tensor | None = None
        """Squared norms of the gradients of weighted L_rr and of cross-entropy with respect to this
        process's last hidden states, float32 `[2]`."""

    @property
    def loss(self) -> Tensor:
        """This process's part of the loss, `[]`: over processes it adds up to that of `row`."""
        assert isinstance(self._shares, Tensor)
        return self._shares.mean()

    def add_losses(self, shares: Tensor) -> None:
        """A micro-batch's part of the loss of each stream, `[K]`."""
        self._shares = self._shares + shares

    def add_gradients(self, *parts: Tensor) -> None:
        """A micro-batch's gradients of weighted L_rr and of cross-entropy."""
        norms = torch.stack([part.square().sum() for part in parts])
        self.gradients = norms if self.gradients is None else self.gradients + norms

    def row(self, world: World) -> dict[str, Any]:
        """Losses over the global batch (all processes must call this)."""
        assert isinstance(self._shares, Tensor)
        losses = sum_over_processes(self._shares, world).tolist()
        row = {"loss": sum(losses) / len(losses), "loss_per_stream": losses}
        row["dropped"] = self.dropped
        if self.rr is not None and self.correlation is not None:
            # Equal on all processes with scope global; their mean with scope local.
            both = torch.stack([self.rr, self.correlation])
            found = (sum_over_processes(both, world) / world.size).tolist()
            row["rr"], row["rr_correlation"] = found
        if self.contrastive is not None:
            of_all = sum_over_processes(self.contrastive.float(), world) / world.size
            row["contrastive"] = float(of_all)
        if self.gradients is not None:
            norms = sum_over_processes(self.gradients, world).sqrt().tolist()
            row["rr_grad_norm"], row["ce_grad_norm"] = norms
        return row


@dataclass(frozen=True)
class MicroBatch:
    """Some clips of a process's share that go through the model together."""

    batch: Batch
    rows: slice
    """Their places in the share."""


def micro_batches(batch: Batch, size: int) -> list[MicroBatch]:
    """A process's share in micro-batches of up to `size` clips; 0 leaves it whole."""
    clips = len(batch.lengths)
    size = size or clips
    parts = []
    for rows in (slice(start, min(start + size, clips)) for start in range(0, clips, size)):
        part = replace(
            batch,
            codes=batch.codes[rows],
            lengths=batch.lengths[rows],
            text=batch.text[rows],
            text_mask=batch.text_mask[rows],
            sample_ids=batch.sample_ids[rows],
        )
        parts.append(MicroBatch(part, rows))
    return parts


def forward(
    model: LanguageModel,
    part: MicroBatch,
    dropped: NDArray[np.bool_],
    precision: str,
    world: World,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits `[b, K, T, C]`, hidden states `[b, T, D]` and targets `[b, K, T]` of some clips of
    this process.

    Args:
        dropped: clips of the global batch that go without text.
        precision: `bf16` multiplies in bf16; anything else as PyTorch is set up.
    """
    batch = part.batch
    inputs, targets = delay(batch.codes, batch.lengths, model.arch.special)
    text: Tensor | None = batch.text
    mask: Tensor | None = batch.text_mask
    if dropped.all():
        # Nobody in the global batch has text: all processes skip cross-attention alike.
        text = mask = None
    elif dropped.any():
        mine = torch.from_numpy(dropped).view(world.size, -1)[world.rank][part.rows]
        mask = batch.text_mask & ~mine.to(inputs.device)[:, None]
    with _autocast(precision, inputs.device):
        logits, hidden = model(inputs, text, mask)
    return logits, hidden, targets


def _autocast(precision: str, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
