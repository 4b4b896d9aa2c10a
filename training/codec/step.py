"""One step of codec training: generator, then discriminator, from one pass of each.

The waveform losses are taken with respect to the decoder's output alone, each gradient by itself;
the balancer weighs them, and their sum goes back through decoder and encoder once, together with
the commitment loss.  The discriminator learns from the same logits that the generator's losses
came from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import AttuneError
from training.codec.config import CodecTrainingConfig
from training.codec.discriminator import (
    Judged,
    adversarial_loss,
    discriminator_loss,
    feature_levels,
    feature_loss,
)
from training.codec.losses import MultiScaleMelLoss
from training.codec.quantizer import Quantized, ResidualQuantizerTrainer
from training.codec.state import CodecState
from training.optim import set_learning_rate

_UPDATE_DRAW = 1
"""Tells the draw of an update from others of its step."""


@dataclass
class Outcome:
    """What came of a step."""

    losses: dict[str, Tensor]
    """Each loss of the generator before weighting, scalars; and `discriminator` where there is
    one."""
    norms: dict[str, Tensor]
    """Norm of the gradient of each waveform loss with respect to the decoder's output."""
    grad_norm: Tensor
    """Of the generator's weights, before clipping."""
    quantized: Quantized | None
    updated_discriminator: bool

    def row(self, config: CodecTrainingConfig) -> dict[str, float]:
        """The same as numbers, for the log; `loss` is the weighted sum, balanced or not."""
        row = {name: float(value) for name, value in self.losses.items()}
        generator = {name: value for name, value in row.items() if name != "discriminator"}
        total = sum(getattr(config.losses, name) * value for name, value in generator.items())
        row |= {f"{name}_grad_norm": float(value) for name, value in self.norms.items()}
        return {"loss": total} | row | {"grad_norm": float(self.grad_norm)}


class CodecStep:
    """Updates what `state` holds, one global batch at a time."""

    def __init__(
        self,
        state: CodecState,
        quantizer: ResidualQuantizerTrainer,
        mel_loss: MultiScaleMelLoss,
        config: CodecTrainingConfig,
        seed: int,
    ) -> None:
        self.state = state
        self.quantizer = quantizer
        self.mel_loss = mel_loss
        self.config = config
        self.seed = seed

    def __call__(self, target: Tensor, step: int, rate: float) -> Outcome:
        """Train on waveforms [B, S].

        Args:
            step: its number, from 0; decides what is drawn.
            rate: learning rate of the generator; the discriminator's is in proportion.

        Raises:
            AttuneError: a loss or the gradient is not finite; nothing is updated then.
        """
        config, state = self.config, self.state
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)

        # 1. Encoder, quantizer, decoder.
        latents = state.model.encoder(target[:, None])
        quantized = None
        if step >= config.quantize_from_step:
            if step == config.quantize_from_step:
                self.quantizer.start(latents.detach(), generator)
            quantized = self.quantizer(latents, generator)
        decoded = state.model.decoder(latents if quantized is None else quantized.latents)
        decoded = decoded[:, 0, : target.shape[-1]]

        # 2. Losses of the waveform, and their gradients with respect to it.
        estimate = decoded.detach().requires_grad_()
        judged = self._judge(target, estimate, step)
        losses = self._waveform_losses(target, estimate, judged)
        gradient, norms = self._gradient(losses, estimate)

        # 3. The generator.
        losses = {name: value.detach() for name, value in losses.items()}
        state.optimizer.zero_grad(set_to_none=True)
        ends, gradients = [decoded], [gradient]
        if quantized is not None:
            losses["commitment"] = quantized.commitment.detach()
            ends.append(config.losses.commitment * quantized.commitment)
            gradients.append(torch.ones_like(ends[-1]))
        torch.autograd.backward(ends, gradients)
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), config.clip_norm)
        if judged is not None:
            told_apart = discriminator_loss(*judged)
            losses["discriminator"] = told_apart.detach()
        check_finite(losses | {"gradient": norm}, step)
        set_learning_rate(state.optimizer, rate)
        state.optimizer.step()

        # 4. The discriminator.
        update = judged is not None and self._draws_update(step)
        if update:
            self._update_discriminator(told_apart, rate)
        return Outcome(losses, norms, norm.detach(), quantized, update)

    def _judge(self, target: Tensor, estimate: Tensor, step: int) -> tuple[Judged, Judged] | None:
        """The discriminator on real and decoded waveforms; None while it has no say."""
        discriminator = self.state.discriminator
        if discriminator is None or step < self.config.discriminator.start_step:
            return None
        with torch.set_grad_enabled(self._draws_update(step)):
            real = discriminator(target)
        return real, discriminator(estimate)

    def _draws_update(self, step: int) -> bool:
        draw = np.random.default_rng((self.seed, step, _UPDATE_DRAW)).random()
        return bool(draw < self.config.discriminator.update_probability)

    def _waveform_losses(
        self, target: Tensor, estimate: Tensor, judged: tuple[Judged, Judged] | None
    ) -> dict[str, Tensor]:
        """Those in use, before weighting."""
        wanted = self.config.losses.of_waveforms
        losses = {}
        if "time" in wanted:
            losses["time"] = F.l1_loss(estimate, target)
        if "mel" in wanted:
            losses["mel"] = self.mel_loss(estimate, target)
        if judged is not None:
            real, fake = judged
            if "adversarial" in wanted:
                losses["adversarial"] = adversarial_loss(fake)
            if "feature" in wanted:
                losses["feature"] = feature_loss(real, fake, feature_levels(real))
        return losses

    def _gradient(
        self, losses: dict[str, Tensor], estimate: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What goes back into the decoder, like `estimate`, and the norm of each loss's part."""
        gradients = {
            name: torch.autograd.grad(loss, estimate, retain_graph=True)[0]
            for name, loss in losses.items()
        }
        norms = {name: gradient.norm() for name, gradient in gradients.items()}
        factors: dict[str, Any]
        if self.state.balancer:
            factors = self.state.balancer.factors(norms)
        else:
            factors = self.config.losses.of_waveforms
        total = torch.zeros_like(estimate)
        for name, gradient in gradients.items():
            total += factors[name] * gradient
        return total, norms

    def _update_discriminator(self, loss: Tensor, rate: float) -> None:
        discriminator, optimizer = self.state.discriminator, self.state.discriminator_optimizer
        assert discriminator and optimizer
        optimizer.zero_grad(set_to_none=True)
        # Of the weights alone: the decoded waveform has had its gradients.
        loss.backward(inputs=list(discriminator.parameters()))
        high = self.config.discriminator.learning_rate
        set_learning_rate(optimizer, high * rate / self.config.learning_rate)
        nn.utils.clip_grad_norm_(discriminator.parameters(), self.config.clip_norm)
        optimizer.step()


def check_finite(values: dict[str, Tensor], step: int) -> None:
    """Stop before anything is learnt from what is no number.

    Args:
        values: scalars by name.
        step: from 0.

    Raises:
        AttuneError: names step and values.
    """
    bad = [name for name, value in values.items() if not torch.isfinite(value)]
    if bad:
        raise AttuneError(
            f"codec training: {' and '.join(bad)} {'is' if len(bad) == 1 else 'are'} not finite at "
            f"step {step + 1}; lower codec_training.learning_rate"
        )
