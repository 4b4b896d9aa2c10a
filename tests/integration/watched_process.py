"""Trains a recipe and writes down the sample ids of each step: one file per process.

python watched_process.py RECIPE FOLDER [OVERRIDE ...]

Variables: BROKEN_STEP breaks the last process's loss at that step; LATER=1 has updates obey a flag
on the device, as on a GPU.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from common.config import load_recipe
from training import data, step, train
from training.distributed import leave
from training.finite import FiniteUpdates


def main(path: str, folder: str, overrides: list[str]) -> None:
    rank = int(os.environ.get("RANK", "0"))
    last = rank == int(os.environ.get("WORLD_SIZE", "1")) - 1
    now = 0
    batches, losses, begin = data.Loader.batches, step.stream_losses, FiniteUpdates.__init__

    def watched(self: data.Loader, first: int, end: int) -> Iterator[data.Batch]:
        nonlocal now
        with (Path(folder) / f"ids-{rank}.jsonl").open("a") as file:
            for number, batch in enumerate(batches(self, first, end), start=first + 1):
                now = number
                file.write(json.dumps([number, *batch.sample_ids]) + "\n")
                file.flush()
                yield batch

    def broken(*args: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sums, counts = losses(*args)
        bad = last and now == int(os.environ.get("BROKEN_STEP", "0"))
        return sums * (math.nan if bad else 1.0), counts

    def deferred(self: FiniteUpdates, *args: object) -> None:
        begin(self, *args)
        self._later = bool(os.environ.get("LATER"))

    data.Loader.batches = watched
    step.stream_losses = broken
    FiniteUpdates.__init__ = deferred
    train.train(load_recipe(path, overrides))
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
