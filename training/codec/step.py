"""One step of codec training: generator, then discriminator, from one pass of each.

Each waveform loss gives a gradient with respect to the decoder's output.  The balancer weighs these
gradients, and their sum goes back through decoder and encoder once, together with the commitment
loss.  The discriminator learns from the same logits as the generator.

Each of several processes takes its part of the global batch.  Together they compute what one
process would: norms, levels and codebooks are those of the global batch, gradients are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.bfloat16 import check_bfloat16
from common.errors import AttuneError
from training.codec.config import CodecTrainingConfig
from training.codec.discriminator import Verdict
from training.codec.losses import (
    COMMITMENT_WEIGHT,
    WAVEFORM_WEIGHTS,
    MultiScaleMelLoss,
    adversarial_loss,
    discriminator_loss,
    feature_levels,
    feature_loss,
)
from training.codec.quantizer import Quantized, ResidualQuantizerTrainer, usage
from training.codec.state import CodecState
from training.distributed import World, sum_over_processes
from training.optim import set_learning_rate

CLIP_NORM = 10.0
"""Largest global norm of the codec's gradient, and of the discriminator's."""
UPDATE_PROBABILITY = 0.5
"""Probability that a step updates the discriminator, which learns faster than the decoder (EnCodec,
section 3.4: 2/3 at 24 kHz, 1/2 at 48 kHz)."""
_UPDATE_DRAW = 1
"""Distinguishes the draw of an update from other draws of its step."""


@dataclass
class Outcome:
    """The results of one step; the same on all processes, except `quantized`."""

    losses: dict[str, Tensor]
    """Scalar losses of the global batch: the generator's, before weighting, and `discriminator`."""
    norms: dict[str, Tensor]
    """Norm of the gradient of each waveform loss with respect to the decoder's output."""
    grad_norm: Tensor
    """Norm of the gradient of the codec's weights, before clipping."""
    quantized: Quantized | None

    def row(self, rate: float) -> dict[str, Any]:
        """Row for the log; `loss` is the weighted sum, before balancing; `rate` becomes `lr`."""
        row = {name: float(value) for name, value in self.losses.items()}
        weights = WAVEFORM_WEIGHTS | {"commitment": COMMITMENT_WEIGHT, "discriminator": 0.0}
        total = sum(weights[name] * value for name, value in row.items())
        row |= {f"{name}_grad_norm": float(value) for name, value in self.norms.items()}
        whole: dict[str, Any] = {"loss": total} | row
        whole |= {"grad_norm": float(self.grad_norm), "lr": rate}
        if self.quantized is not None and self.quantized.uses is not None:
            whole["used"], whole["perplexity"] = usage(self.quantized.uses)
        return whole


class CodecStep:
    """Updates the models and statistics in `state`, one global batch at a time."""

    def __init__(
        self,
        state: CodecState,
        quantizer: ResidualQuantizerTrainer,
        mel_loss: MultiScaleMelLoss,
        config: CodecTrainingConfig,
        seed: int,
    ) -> None:
        self.state, self.quantizer, self.mel_loss = state, quantizer, mel_loss
        self.config, self.seed, self.world = config, seed, quantizer.world

    def check_precision(self) -> None:
        """Try bf16, where the config asks for it, on a second of noise, gradients included.

        Raises:
            WrongBfloat16: a kernel of this processor is wrong for some layer.
        """
        if self.config.precision == "fp32":
            return
        state, device = self.state, self.world.device
        rate, noise = state.model.config.sampling_rate, torch.Generator().manual_seed(0)
        wav = 0.1 * torch.randn(1, rate, generator=noise).to(device)
        with torch.no_grad():
            latents = state.model.encoder(wav[:, None])
        parts: list[tuple[str, nn.Module, Tensor]] = [
            ("encoder", state.model.encoder, wav[:, None]),
            ("decoder", state.model.decoder, latents),
            ("discriminator", state.discriminator, wav),
        ]
        for name, module, given in parts:
            exact, rounded = (self._tried(module, given, kind) for kind in ("fp32", "bf16"))
            for what, value in exact.items():
                place = f"the codec's {name} ({what})"
                remedy = "set codec_training.precision=fp32 and start a new run"
                check_bfloat16(place, value, rounded[what], remedy)

    def _tried(self, module: nn.Module, given: Tensor, precision: str) -> dict[str, Tensor]:
        """Outputs of a module, and the gradients of their weighted sum, each under its name."""
        given = given.detach().requires_grad_()
        with self._autocast(precision):
            found = module(given)
        outputs = [found] if isinstance(found, Tensor) else [*found.logits, *found.features]
        noise = torch.Generator().manual_seed(1)
        weighted = (out * torch.randn(out.shape, generator=noise).to(out) for out in outputs)
        total = torch.stack([part.float().sum() for part in weighted]).sum()
        # Left out: biases and weight norm's lengths (original0), because their gradients are sums
        # whose terms mostly cancel and leave rounding errors; and directions of a single value.
        weights = {
            n: w
            for n, w in module.named_parameters()
            if w.requires_grad and w[0].numel() > 1 and "weight" in n
        }
        gradients = torch.autograd.grad(total, [given, *weights.values()])
        tried = {f"output {i}": out.detach() for i, out in enumerate(outputs)}
        names = ("its input", *weights)
        return tried | {f"gradient of {n}": g for n, g in zip(names, gradients, strict=True)}

    def __call__(self, target: Tensor, step: int, rate: float) -> Outcome:
        """Train on waveforms [B / processes, S], this process's part of the global batch.

        Args:
            step: its number, from 0; decides what is drawn.
            rate: learning rate of codec and discriminator.

        Raises:
            AttuneError: a loss or the gradient is not finite; no weight is updated then.
        """
        config, state = self.config, self.state
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)

        # 1. Encoder, quantizer, decoder.
        with self._autocast(config.precision):
            latents = state.model.encoder(target[:, None])
        latents, quantized = latents.float(), None
        if step >= config.quantize_from_step:
            if step == config.quantize_from_step:
                self.quantizer.start(latents.detach(), generator)
            quantized = self.quantizer(latents, generator)
        with self._autocast(config.precision):
            decoded = state.model.decoder(latents if quantized is None else quantized.latents)
        decoded = decoded[:, 0, : target.shape[-1]].float()

        # 2. Losses of the waveform, and their gradients with respect to it.
        estimate = decoded.detach().requires_grad_()
        draw = np.random.default_rng((self.seed, step, _UPDATE_DRAW)).random()
        update = bool(draw < UPDATE_PROBABILITY) and not state.guards.resting
        verdicts = self._verdicts(target, estimate, step, update)
        waveform = self._waveform_losses(target, estimate, verdicts)
        gradient, norms = self._gradient(waveform, estimate)

        # 3. Back through decoder and encoder.
        state.optimizer.zero_grad(set_to_none=True)
        ends, gradients, losses = [decoded], [gradient], dict(waveform)
        if quantized is not None:
            losses["commitment"] = quantized.commitment
            ends.append(COMMITMENT_WEIGHT * quantized.commitment)
            gradients.append(torch.ones_like(ends[-1]))
        torch.autograd.backward(ends, gradients)
        average_gradients(state.model, self.world)
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), CLIP_NORM)
        if verdicts is not None:
            losses["discriminator"] = discriminator_loss(*verdicts)
        found = self._of_global_batch(losses)
        check_finite(found | {"gradient": norm}, step)

        # 4. Updates.
        set_learning_rate(state.optimizer, rate)
        state.optimizer.step()
        state.average.update()
        if verdicts is not None and update:
            self._update_discriminator(losses["discriminator"], rate)
        return Outcome(found, norms, norm.detach(), quantized)

    def _autocast(self, precision: str) -> torch.autocast:
        device = self.world.device.type
        return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")

    def _verdicts(
        self, target: Tensor, estimate: Tensor, step: int, update: bool
    ) -> tuple[Verdict, Verdict] | None:
        """The discriminator on real and decoded waveforms; None before its first step."""
        if step < self.config.discriminator.start_step:
            return None
        with self._autocast(self.config.precision):
            with torch.set_grad_enabled(update):
                real = self.state.discriminator(target)
            return real, self.state.discriminator(estimate)

    def _waveform_losses(
        self, target: Tensor, estimate: Tensor, verdicts: tuple[Verdict, Verdict] | None
    ) -> dict[str, Tensor]:
        """Losses of this process's part, before weighting."""
        losses = {"time": F.l1_loss(estimate, target), "mel": self.mel_loss(estimate, target)}
        if verdicts is not None:
            real, fake = verdicts
            levels = sum_over_processes(feature_levels(real), self.world) / self.world.size
            losses["adversarial"] = adversarial_loss(fake)
            losses["feature"] = feature_loss(real, fake, levels)
        return losses

    def _gradient(
        self, losses: dict[str, Tensor], estimate: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Balanced gradient with respect to `estimate`, and the norm of each loss's gradient.

        Losses are means over a process's part, and gradients are averaged over processes later. So
        the gradient of the global batch's mean is a process's own gradient divided by their number.
        """
        gradients = {
            name: torch.autograd.grad(loss, estimate, retain_graph=True)[0]
            for name, loss in losses.items()
        }
        squares = torch.stack([gradient.square().sum() for gradient in gradients.values()])
        lengths = sum_over_processes(squares, self.world).sqrt() / self.world.size
        norms = dict(zip(gradients, lengths, strict=True))
        factors = self.state.balancer.factors(norms)
        total = torch.zeros_like(estimate)
        for name, gradient in gradients.items():
            total += factors[name] * gradient
        return total, norms

    def _of_global_batch(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Means of the losses over all processes, without gradient."""
        values = torch.stack([value.detach() for value in losses.values()])
        means = sum_over_processes(values, self.world) / self.world.size
        return dict(zip(losses, means, strict=True))

    def _update_discriminator(self, loss: Tensor, rate: float) -> None:
        discriminator, optimizer = self.state.discriminator, self.state.discriminator_optimizer
        optimizer.zero_grad(set_to_none=True)
        # Only the weights' gradients: those of the decoded waveform were taken before.
        loss.backward(inputs=list(discriminator.parameters()))
        average_gradients(discriminator, self.world)
        nn.utils.clip_grad_norm_(discriminator.parameters(), CLIP_NORM)
        set_learning_rate(optimizer, rate)
        optimizer.step()


def average_gradients(model: nn.Module, world: World) -> None:
    """Replace each process's gradients by their mean over all, in one exchange."""
    if world.size == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    whole = torch.cat([gradient.flatten() for gradient in gradients])
    whole = sum_over_processes(whole, world) / world.size
    parts = whole.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def check_finite(values: Mapping[str, Tensor], step: int) -> None:
    """Stop before weights are updated from a value that is not finite.

    Args:
        values: scalars by name.
        step: from 0.

    Raises:
        AttuneError: names step and values.
    """
    finite = torch.stack(list(values.values())).isfinite().tolist()
    bad = [name for name, good in zip(values, finite, strict=True) if not good]
    if bad:
        raise AttuneError(
            f"codec training: {' and '.join(bad)} {'is' if len(bad) == 1 else 'are'} not finite at "
            f"step {step + 1}; lower codec_training.learning_rate"
        )
