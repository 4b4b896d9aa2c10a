"""Trains a codec and writes what each process holds after every step.

python codec_process.py RECIPE FOLDER [KEY=VALUE...]: FOLDER/RANK.safetensors with codebooks, some
weights and all gradients of every step; and proves that processes that differ are found out.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from float64 import compute_in_float64
from safetensors.torch import save_file

from common.config import load_recipe
from common.errors import AttuneError
from training.codec import train as codec_train
from training.codec.losses import MultiScaleMelLoss
from training.codec.state import CodecState, check_alike
from training.codec.step import CodecStep
from training.distributed import World, leave

held: dict[str, torch.Tensor] = {}
states: list[tuple[CodecState, World]] = []


class WatchedStep(CodecStep):
    def __call__(self, target: torch.Tensor, step: int, rate: float) -> Any:
        outcome = super().__call__(target, step, rate)
        for name, value in self.state.model.state_dict().items():
            if "codebook" in name or name.startswith("decoder.layers.0."):
                held[f"{step}.{name}"] = value.clone()
        for part in ("model", "discriminator"):
            parameters = getattr(self.state, part).parameters()
            gradients = [p.grad.flatten() for p in parameters if p.grad is not None]
            if gradients:
                held[f"{step}.gradient.{part}"] = torch.cat(gradients)
        states[:] = [(self.state, self.world)]
        return outcome


def main(path: str, folder: str, overrides: list[str]) -> None:
    compute_in_float64()
    recipe = load_recipe(path, overrides)
    codec_train.CodecStep = WatchedStep  # type: ignore[misc]
    # Windows of which no band holds next to nothing, whose logarithm would magnify rounding.
    windows = partial(MultiScaleMelLoss, windows=(256, 1024))
    codec_train.MultiScaleMelLoss = windows  # type: ignore[assignment,misc]
    codec_train.train_codec(recipe)
    ((state, world),) = states
    save_file(held, Path(folder) / f"{world.rank}.safetensors")
    if world.rank == 1:
        book = state.model.quantizer.layers[0].codebook.embed
        book[0, 0] = torch.nextafter(book[0, 0], torch.tensor(9.0))
    try:
        check_alike(state, world, 12)
        print("alike", flush=True)
    except AttuneError as error:
        print(error, flush=True)
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
