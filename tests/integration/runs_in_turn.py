"""Trains a recipe as one run after the other, in the same processes: they start once for all.

python runs_in_turn.py RECIPE RUN[,RUN...] [OVERRIDE ...]
"""

from __future__ import annotations

import sys

from common.config import load_recipe
from training.distributed import leave
from training.train import train


def main(path: str, runs: list[str], overrides: list[str]) -> None:
    for run in runs:
        train(load_recipe(path, [*overrides, f"lm.run={run}"]))
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2].split(","), sys.argv[3:])
