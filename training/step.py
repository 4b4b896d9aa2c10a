"""One training step: forward, the objective, backward."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.config import LMConfig
from training.data import Batch, dropped_text
from training.distributed import World, gather_rows, sum_over_processes
from training.lm.losses import (
    pool,
    representation_regularization,
    similarity_correlation,
    stream_losses,
)
from training.lm.model import Architecture, LanguageModel
from training.lm.patterns import delay, valid_steps


class TrainingStep:
    """Forward, loss and backward of one step."""

    def __init__(
        self, model: LanguageModel, config: LMConfig, arch: Architecture, world: World, seed: int
    ) -> None:
        self._model = model
        self._config = config
        self._arch = arch
        self._world = world
        self._seed = seed

    def __call__(self, batch: Batch, step: int) -> Outcome:
        """Leave the gradient of the global batch's objective in the parameters."""
        config, world = self._config, self._world
        dropped = dropped_text(
            self._seed, step, config.batch_size, config.cfg.dropout, config.cfg.granularity
        )
        logits, hidden, targets = forward(self._model, batch, dropped, config, world, self._arch)
        sums, counts = stream_losses(logits, targets)
        counts = sum_over_processes(counts, world).clamp(min=1)
        objective = (
            (sums / counts).mean() if config.stream_loss == "mean" else (sums / counts).sum()
        )
        # FSDP averages gradients over processes; the objective is a sum over them.
        objective = objective * world.size
        outcome = Outcome(sums.detach() / counts, float(dropped.mean()))
        chosen = np.ones_like(dropped) if config.rr.apply == "always" else dropped
        if not chosen.any():
            objective.backward()
            return outcome
        if not config.rr.weight:
            with torch.no_grad():
                outcome.rr, outcome.correlation = self._regularization(batch, hidden, chosen)
            objective.backward()
            return outcome
        # A view of its own: the regularization's share of the gradient can be told apart there.
        states = hidden.view_as(hidden)
        states.retain_grad()
        whole: list[Tensor] = []
        hidden.register_hook(whole.append)
        rr, outcome.correlation = self._regularization(batch, states, chosen)
        outcome.rr = rr.detach()
        (objective + config.rr.weight * rr).backward()
        assert states.grad is not None
        shares = (states.grad.float(), (whole[0] - states.grad).float())
        outcome.gradients = torch.stack([share.square().sum() for share in shares])
        outcome.gradients /= world.size**2
        return outcome

    def _regularization(
        self, batch: Batch, hidden: Tensor, chosen: NDArray[np.bool_]
    ) -> tuple[Tensor, Tensor]:
        """L_rr over the clips `chosen` of the global batch, and how the similarities correlate."""
        how, world = self._config.rr, self._world
        mask = valid_steps(batch.lengths, self._arch.n_codebooks, hidden.shape[1])
        audio = pool(hidden, mask, how.pool)
        states = batch.text
        if how.text == "projected":
            # Under FSDP the root's weights stay whole from the forward pass to the backward one.
            with torch.no_grad(), _precision(self._config, world):
                states = self._model.text_projection(states)
        text = pool(states, batch.text_mask, how.pool)
        places = torch.from_numpy(chosen).to(audio.device)
        if how.scope == "global":
            audio, text = gather_rows(audio, world), gather_rows(text, world)
        else:
            places = places.view(world.size, -1)[world.rank]
        audio, text = audio[places], text[places]
        return (
            representation_regularization(audio, text),
            similarity_correlation(audio.detach(), text),
        )


class Outcome:
    """What one step came to, still on the device."""

    def __init__(self, shares: Tensor, dropped: float) -> None:
        self._shares = shares
        self.dropped = dropped
        """Share of the global batch that trained without text."""
        self.rr: Tensor | None = None
        """L_rr where it was taken, before its weight."""
        self.correlation: Tensor | None = None
        """Of the two similarity matrices."""
        self.gradients: Tensor | None = None
        """Squared norms of the gradients of weighted L_rr and of cross-entropy with respect to this
        process's last hidden states, float32 `[2]`."""

    @property
    def loss(self) -> Tensor:
        """This process's part of the loss, `[]`: over processes it adds up to that of `row`."""
        return self._shares.mean()

    def row(self, world: World) -> dict[str, Any]:
        """Losses over the global batch (all processes must call this)."""
        losses = sum_over_processes(self._shares, world).tolist()
        row = {"loss": sum(losses) / len(losses), "loss_per_stream": losses}
        row["dropped"] = self.dropped
        if self.rr is not None and self.correlation is not None:
            # Equal on all processes with scope global; their mean with scope local.
            both = torch.stack([self.rr, self.correlation])
            found = (sum_over_processes(both, world) / world.size).tolist()
            row["rr"], row["rr_correlation"] = found
        if self.gradients is not None:
            norms = sum_over_processes(self.gradients, world).sqrt().tolist()
            row["rr_grad_norm"], row["ce_grad_norm"] = norms
        return row


def forward(
    model: LanguageModel,
    batch: Batch,
    dropped: NDArray[np.bool_],
    config: LMConfig,
    world: World,
    arch: Architecture,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, hidden states and targets of this process's share of a batch."""
    inputs, targets = delay(batch.codes, batch.lengths, arch.special)
    text: Tensor | None = batch.text
    mask: Tensor | None = batch.text_mask
    if dropped.all():
        # Nobody in the global batch has text: all processes skip cross-attention alike.
        text = mask = None
    elif dropped.any():
        mine = torch.from_numpy(dropped).view(world.size, -1)[world.rank].to(inputs.device)
        mask = batch.text_mask & ~mine[:, None]
    with _precision(config, world):
        logits, hidden = model(inputs, text, mask)
    return logits, hidden, targets


def _precision(config: LMConfig, world: World) -> AbstractContextManager[Any]:
    if config.precision == "bf16":
        return torch.autocast(world.device.type, dtype=torch.bfloat16)
    return nullcontext()
