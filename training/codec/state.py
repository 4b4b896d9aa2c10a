"""Everything that codec training changes, as a checkpoint keeps it; the same on every process."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import AttuneError
from training.checkpoint.save import ModelState
from training.codec.balancer import Balancer
from training.codec.config import CodecTrainingConfig
from training.codec.discriminator import MultiScaleDiscriminator
from training.codec.guards import Guards
from training.codec.losses import WAVEFORM_WEIGHTS
from training.codec.model import build_model
from training.distributed import World, gather_objects
from training.ema import ExponentialMovingAverage
from training.optim import make_state

AVERAGE_DECAY = 0.99
"""Decay of the average of the weights. The average is validated and becomes the finished codec."""


class CodecState:
    """Codec, discriminator, their optimizers, the codec's average, balancer and guards.

    Attributes:
        model: the `EncodecModel`; its buffers are the codebooks.
        average: of the model's weights; the codebooks are moving averages already.
    """

    def __init__(
        self,
        config: CodecTrainingConfig,
        sample_rate: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        torch.manual_seed(seed)
        shape = config.architecture
        self.model: Any = build_model(shape, sample_rate).to(device)
        self.optimizer = _adam(self.model, config.learning_rate, config.betas)
        self.average = ExponentialMovingAverage(self.model, AVERAGE_DECAY)
        self.guards = Guards(shape.n_codebooks, shape.codebook_size)
        self.balancer = Balancer(WAVEFORM_WEIGHTS, config.balancer_decay)
        sizes = config.discriminator
        self.discriminator = MultiScaleDiscriminator(sizes.windows, sizes.filters).to(device)
        self.discriminator_optimizer = _adam(self.discriminator, config.learning_rate, config.betas)
        self._models = {
            "codec": ModelState(self.model, self.optimizer, self.average),
            "discriminator": ModelState(self.discriminator, self.discriminator_optimizer),
        }

    def state(self) -> dict[str, Any]:
        """The whole state, by part and name."""
        small = {"guards": self.guards.state(), "balancer": self.balancer.state()}
        return {name: part.state() for name, part in self._models.items()} | small

    def restore(self, state: dict[str, Any]) -> None:
        """Take in `state()` of a run of the same config."""
        for name, part in self._models.items():
            part.restore(state[name])
        self.guards.load(state["guards"])
        self.balancer.load(state["balancer"])

    def weights(self) -> dict[str, Tensor]:
        """No weights: a checkpoint is for resuming only; the finished codec has its own folder."""
        return {}


def _adam(model: nn.Module, rate: float, betas: tuple[float, float]) -> torch.optim.Adam:
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, betas=betas)
    make_state(optimizer, rate)
    return optimizer


def check_alike(state: CodecState, world: World, step: int) -> None:
    """Check that codebooks, weights and average are the same on every process, to the bit.

    They are by construction. The check finds a machine that computes wrongly before days are lost.

    Raises:
        AttuneError: on all processes, if one differs.
    """
    if world.size == 1:
        return
    digest = hashlib.blake2b(digest_size=16)
    for tensor in (*state.model.state_dict().values(), *state.average.weights.values()):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    found = gather_objects(digest.hexdigest(), world)
    if len(set(found)) > 1:
        others = [rank for rank, value in enumerate(found) if value != found[0]]
        raise AttuneError(
            f"codec training: at step {step} processes {others} hold another codec than the first "
            "one; a machine computes wrongly, or differs from the others: use alike ones"
        )
