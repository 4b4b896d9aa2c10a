"""Writes the gradients of one step without text, whole, from however many processes this runs on.

python gradient_process.py RECIPE OUT GROUP [OVERRIDE ...]: GROUP processes share a copy of the
weights, 0 for all.
"""

from __future__ import annotations

import os
import sys

import torch
from safetensors.torch import save_file

from common.config import load_recipe
from common.shards import ShardDataset
from training.config import LMConfig
from training.data import ClipOrder, Loader
from training.distributed import full, parallelize, start, sum_over_processes
from training.lm.model import LanguageModel
from training.optim import fill_missing_gradients
from training.step import TrainingStep
from training.train import architecture


def main(path: str, out: str, group: int, overrides: list[str]) -> None:
    recipe = load_recipe(path, overrides)
    config = recipe.section("lm", LMConfig)
    dataset = ShardDataset.open(recipe.data_dir)
    world = start(1)
    model = LanguageModel(architecture(config, dataset.summary))
    model.initialize(3)
    again = config.activation_checkpointing
    parallelize(model, world, config.precision, group, activation_checkpointing=again)
    order = ClipOrder(dataset, "train", 0)
    loader = Loader(
        dataset, order, segment_s=0.4, seed=0, batch_size=config.batch_size,
        rank=world.rank, world=world.size,
    )  # fmt: skip
    row = TrainingStep(model, config, world, 0)(loader.batch(0), 0).row(world)
    fill_missing_gradients(model)
    gradients = {name: full(p.grad).contiguous() for name, p in model.named_parameters()}
    if world.is_first:
        numbers = {key: torch.tensor(row[key]) for key in ("loss", "rr", "rr_correlation")}
        numbers |= {key: torch.tensor(row[key]) for key in ("rr_grad_norm", "ce_grad_norm")}
        if "contrastive" in row:
            numbers["contrastive"] = torch.tensor(row["contrastive"])
        save_file(gradients | numbers, out)
    sum_over_processes(torch.zeros(1), world)  # nobody leaves while another is still at work
    # gloo's threads now and then abort a process that takes itself down in good order.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:])
