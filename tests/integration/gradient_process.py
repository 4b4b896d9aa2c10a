"""Writes the gradients of one step without text, whole, from however many processes this runs on.

python gradient_process.py RECIPE FOLDER OVERRIDES...

Each OVERRIDES is a list with commas between.  It makes one step, written to
FOLDER/NUMBER.safetensors.
`group=N` lets N processes share a copy of the weights, as the processes of a node do under hybrid
sharding.
"""

from __future__ import annotations

import sys

import torch
from safetensors.torch import save_file

from common.config import load_recipe
from common.shards import ShardDataset
from training.config import LMConfig
from training.data import ClipOrder, Loader
from training.distributed import World, full, leave, parallelize, start
from training.lm.model import LanguageModel
from training.optim import fill_missing_gradients
from training.step import TrainingStep
from training.train import architecture


def prepare(
    path: str, overrides: list[str]
) -> tuple[LMConfig, World, LanguageModel, Loader, TrainingStep]:
    """What a step of the recipe's training takes."""
    groups = [int(one.removeprefix("group=")) for one in overrides if one.startswith("group=")]
    recipe = load_recipe(path, [one for one in overrides if not one.startswith("group=")])
    config = recipe.section("lm", LMConfig)
    dataset = ShardDataset.open(recipe.data_dir)
    world = start(1)
    model = LanguageModel(architecture(config, dataset.summary))
    model.initialize(3)
    again = config.activation_checkpointing
    parallelize(model, world, config.precision, sum(groups), activation_checkpointing=again)
    order = ClipOrder(dataset, "train", 0)
    loader = Loader(
        dataset, order, segment_s=0.4, seed=0, batch_size=config.batch_size,
        rank=world.rank, world=world.size,
    )  # fmt: skip
    return config, world, model, loader, TrainingStep(model, config, world, 0)


def main(path: str, folder: str, steps: list[str]) -> None:
    for number, overrides in enumerate(steps):
        _, world, model, loader, step = prepare(path, overrides.split(","))
        row = step(loader.batch(0), 0).row(world)
        fill_missing_gradients(model)
        gradients = {name: full(p.grad).contiguous() for name, p in model.named_parameters()}
        if world.is_first:
            keys = {"loss", "rr", "rr_correlation", "rr_grad_norm", "ce_grad_norm", "contrastive"}
            found = {key: torch.tensor(row[key]) for key in keys & row.keys()}
            save_file(gradients | found, f"{folder}/{number}.safetensors")
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
