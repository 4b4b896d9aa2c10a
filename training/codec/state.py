"""Everything that codec training changes, as a checkpoint holds it.

Every process holds all of it, and all hold the same.
"""

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
from training.codec.model import build_model
from training.distributed import World, gather_objects
from training.ema import ExponentialMovingAverage
from training.optim import make_state

AVERAGE_DECAY = 0.99
"""Decay of the average of the weights, which is validated, and which the finished codec is."""


class CodecState:
    """Codec, discriminator, their optimizers, the codec's average, balancer and guards.

    Attributes:
        model: the `EncodecModel`; its buffers are the codebooks.
        average: of the model's weights; the codebooks are averages by themselves.
        discriminator: None where no loss asks for it, and then it has no optimizer either.
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
        self.balancer = Balancer(config.losses.of_waveforms, config.balancer_decay)
        self._models = {"codec": ModelState(self.model, self.optimizer, self.average)}
        self.discriminator: MultiScaleDiscriminator | None = None
        self.discriminator_optimizer: torch.optim.Adam | None = None
        if config.losses.use_discriminator:
            wanted = config.discriminator
            made = MultiScaleDiscriminator(wanted.windows, wanted.filters).to(device)
            self.discriminator = made
            self.discriminator_optimizer = _adam(made, wanted.learning_rate, config.betas)
            self._models["discriminator"] = ModelState(made, self.discriminator_optimizer)

    def state(self) -> dict[str, Any]:
        """All of it, by part and name."""
        small = {"guards": self.guards.state(), "balancer": self.balancer.state()}
        return {name: part.state() for name, part in self._models.items()} | small

    def restore(self, state: dict[str, Any]) -> None:
        """Take in `state()` of a run of the same config."""
        for name, part in self._models.items():
            part.restore(state[name])
        self.guards.load(state["guards"])
        self.balancer.load(state["balancer"])

    def weights(self) -> dict[str, Tensor]:
        """Nothing: a checkpoint is for resuming only, the finished codec has its own folder."""
        return {}


def _adam(model: nn.Module, rate: float, betas: tuple[float, float]) -> torch.optim.Adam:
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, betas=betas)
    make_state(optimizer, rate)
    return optimizer


def check_alike(state: CodecState, world: World, step: int) -> None:
    """Codebooks, weights and average are the same on every process, to the bit.

    They are by construction; a machine that computes otherwise than the others must not go
    unnoticed for days.

    Raises:
        AttuneError: on every process alike.
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
