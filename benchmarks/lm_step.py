"""A training step of the language model: ours, and one with Hugging Face's MusicGen decoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.musicgen import Musicgen, musicgen_optimizer
from training.config import LMConfig, ModelConfig, OptimConfig, RegularizationConfig
from training.data import Batch
from training.distributed import World
from training.lm.model import Architecture, LanguageModel
from training.lm.patterns import delay
from training.optim import build_optimizer, fill_missing_gradients
from training.step import TrainingStep

SIZES = {"tiny": (256, 4, 4), "60M": (512, 16, 8)}
"""Width, layers, heads."""
CLIPS, FRAMES, TOKENS, TEXT_DIM = 4, 250, 20, 768
OPTIM = OptimConfig(lr=3e-4, warmup=0)
_CPU = torch.device("cpu")

Step = Callable[[Batch], Tensor]
"""Trains on a batch and returns the loss."""


def architecture(size: str) -> Architecture:
    width, layers, heads = SIZES[size]
    return Architecture(width, layers, heads, 4, 2048, TEXT_DIM)


def batch(arch: Architecture, seed: int, clips: int = CLIPS, frames: int = FRAMES) -> Batch:
    """Codes that can be learnt (each stream repeats the melody of its clip), and random text."""
    generator = torch.Generator().manual_seed(seed)
    shape = (clips, arch.n_codebooks, 1)
    start = torch.randint(0, arch.codebook_size, shape, generator=generator)
    codes = (start + 7 * torch.arange(frames)) % arch.codebook_size
    text = torch.randn(clips, TOKENS, TEXT_DIM, generator=generator)
    mask = torch.ones(clips, TOKENS, dtype=torch.bool)
    names = tuple(str(i) for i in range(clips))
    return Batch(codes, torch.full((clips,), frames), text, mask, names)


def our_step(
    model: LanguageModel, precision: str, device: torch.device = _CPU, clips: int = CLIPS
) -> Step:
    """The step that `training.train.train` does for a batch."""
    world = World(0, 1, device)
    config = LMConfig.model_validate(
        {
            "model": ModelConfig(),
            "batch_size": clips,
            "precision": precision,
            "optim": OPTIM,
            "cfg": {"dropout": 0.0},
            "rr": RegularizationConfig(weight=0.0),
        }
    )
    objective = TrainingStep(model, config, world, seed=0)
    optimizer = build_optimizer(model, OPTIM)

    def step(batch: Batch) -> Tensor:
        outcome = objective(batch, 0)
        fill_missing_gradients(model)
        _update(model, optimizer)
        return outcome.loss

    return step


def their_step(model: Musicgen, arch: Architecture, precision: str) -> Step:
    """A training step with Hugging Face's decoder and its loss."""
    optimizer = musicgen_optimizer(model, OPTIM)

    def step(batch: Batch) -> Tensor:
        inputs, targets = delay(batch.codes, batch.lengths, arch.special)
        device = batch.codes.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = model(inputs, targets, batch.text, batch.text_mask).loss
        loss.backward()
        _update(model, optimizer)
        return loss.detach()

    return step


def _update(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
