"""Training runs of the tiny recipe, and commands of `python -m training` in this process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from click.testing import Result
from typer.testing import CliRunner

from common.config import load_recipe
from training.checkpoint.save import Checkpointer, ModelState
from training.cli import app
from training.config import OptimConfig
from training.distributed import World
from training.ema import ExponentialMovingAverage
from training.optim import build_optimizer
from training.run.log import MEASURED, read_log
from training.train import train


def run_command(*arguments: object) -> Result:
    """Run a command that must succeed; an error in it is raised."""
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def train_tiny(root: Path, out: Path, *overrides: str, fresh: bool = False) -> list[dict[str, Any]]:
    """Train by the recipe in `root` with `out` as `run_dir`, and read the log."""
    recipe = load_recipe(root / "recipe.yaml", [f"run_dir={out}", *overrides])
    return read_log(train(recipe, fresh=fresh))


def without_clock(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a log without the keys that depend on the machine's speed."""
    return [{key: value for key, value in row.items() if key not in MEASURED} for row in rows]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def linear_checkpointer(run: Path, keep: int = 2, background: bool = False) -> Checkpointer:
    """A checkpointer of a linear layer, its optimizer and its average."""
    model = torch.nn.Linear(2, 2)
    optimizer, ema = build_optimizer(model, OptimConfig()), ExponentialMovingAverage(model, 0.9)
    world = World(0, 1, torch.device("cpu"))
    content = ModelState(model, optimizer, ema)
    return Checkpointer(run, world, content, keep=keep, background=background)


def set_column(data: Path, name: str, values: list[Any]) -> pa.Table:
    """Replace a column of the manifest in `data`; returns the table as it was before."""
    path = data / "manifest.parquet"
    table = pq.read_table(path)
    at = table.schema.get_field_index(name)
    column = pa.array(values, table.schema.field(at).type)
    pq.write_table(table.set_column(at, table.schema.field(at), column), path)
    return table


class MakesFolder:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self._folder),)
