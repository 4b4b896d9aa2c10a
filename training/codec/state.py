"""Everything that codec training changes, and its checkpoint: one file, safetensors.

Every process holds all of it, and all hold the same: the first one writes, each one reads.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.errors import AttuneError
from training.codec.balancer import Balancer
from training.codec.config import CodecTrainingConfig
from training.codec.discriminator import MultiScaleDiscriminator
from training.codec.guards import Guards
from training.codec.model import build_model
from training.distributed import World, gather_objects
from training.ema import ExponentialMovingAverage
from training.run.files import as_any_file

CHECKPOINT = "checkpoint.safetensors"
"""The newest checkpoint's name in its run's folder."""


class CodecState:
    """Codec, discriminator, their optimizers, the codec's average, balancer and guards.

    Attributes:
        model: the `EncodecModel`; its buffers are the codebooks.
        average: of the model's weights; the codebooks are averages by themselves.
        discriminator: None where no loss asks for it, and then it has no optimizer either.
        balancer: None where the config switches it off.
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
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=config.learning_rate, betas=config.betas
        )
        self.average = ExponentialMovingAverage(self.model, config.ema_decay)
        self.guards = Guards(config.guards, shape.n_codebooks, shape.codebook_size)
        self.discriminator: MultiScaleDiscriminator | None = None
        self.discriminator_optimizer: torch.optim.Adam | None = None
        if config.losses.use_discriminator:
            wanted = config.discriminator
            made = MultiScaleDiscriminator(wanted.windows, wanted.filters)
            self.discriminator = made.to(device)
            self.discriminator_optimizer = torch.optim.Adam(
                self.discriminator.parameters(), lr=wanted.learning_rate, betas=config.betas
            )
        self.balancer: Balancer | None = None
        if config.balancer:
            self.balancer = Balancer(config.losses.of_waveforms, config.balancer_decay)

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, `PART.NAME`."""
        parts: dict[str, Mapping[str, Tensor]] = {
            "model": self.model.state_dict(),
            "optimizer": _optimizer_tensors(self.optimizer),
            "average": self.average.weights | {"updates": torch.tensor(self.average.updates)},
            "guards": self.guards.state(),
        }
        if self.discriminator and self.discriminator_optimizer:
            parts["discriminator"] = self.discriminator.state_dict()
            parts["discriminator_optimizer"] = _optimizer_tensors(self.discriminator_optimizer)
        if self.balancer:
            parts["balancer"] = self.balancer.state()
        return {
            f"{part}.{name}": value
            for part, found in parts.items()
            for name, value in found.items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take `tensors()` of another state of the same config."""
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            part, _, name = key.partition(".")
            parts.setdefault(part, {})[name] = value
        self.model.load_state_dict(parts["model"])
        _load_optimizer(self.optimizer, parts.get("optimizer", {}))
        self.average.updates = int(parts["average"].pop("updates"))
        for name, weight in self.average.weights.items():
            weight.copy_(parts["average"][name])
        self.guards.load(parts["guards"])
        if self.discriminator and self.discriminator_optimizer:
            self.discriminator.load_state_dict(parts["discriminator"])
            _load_optimizer(self.discriminator_optimizer, parts.get("discriminator_optimizer", {}))
        if self.balancer:
            self.balancer.load(parts.get("balancer", {}))


def save_checkpoint(run: Path, state: CodecState, step: int) -> None:
    """Replace `RUN/checkpoint.safetensors` in one move.

    Args:
        step: finished steps.

    Raises:
        AttuneError: it cannot be written; the one before is as it was.
    """
    tensors = state.tensors() | {"step": torch.tensor(step)}
    whole = {name: value.cpu().contiguous().clone() for name, value in tensors.items()}
    partial = run / f"{CHECKPOINT}.partial"
    try:
        save_file(whole, partial)
        as_any_file(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(run / CHECKPOINT)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise AttuneError(
            f"{run / CHECKPOINT}: cannot be saved: {reason}; rerun the same command to go on from "
            "the one before, once there is room"
        ) from error


def load_checkpoint(run: Path, state: CodecState) -> int:
    """Restore the newest checkpoint; the number of steps done, 0 without one.

    Raises:
        AttuneError: there is one and it cannot be used.
    """
    path = run / CHECKPOINT
    if not path.is_file():
        return 0
    try:
        tensors = load_file(path)
        step = int(tensors.pop("step"))
        state.load(tensors)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AttuneError(
            f"{path} is damaged ({reason}); remove it to train from the beginning"
        ) from error
    return step


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


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    states = optimizer.state_dict()["state"]
    return {f"{i}.{name}": value for i, state in states.items() for name, value in state.items()}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        states.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})
