"""`lm`, `codec`: train, and show the state of a run."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.cli import ConfigOption, JsonOption, OverridesArgument, print_json
from common.config import Recipe, load_recipe
from common.errors import AttuneError

if TYPE_CHECKING:
    from training.run.signals import StopSignals


DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print what the run would take, and stop.")
]
StatusOption = Annotated[
    bool, typer.Option("--status", help="Print the state of the run, also while it trains.")
]


FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Delete the files of this run and start from scratch.")
]


def lm(
    config: ConfigOption,
    overrides: OverridesArgument = None,
    fresh: FreshOption = False,
    dry_run: DryRunOption = False,
    status: StatusOption = False,
    curves: Annotated[
        Path | None, typer.Option("--curves", help="Draw the run's curves into this PNG.")
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option("--with", help="Another run to draw; repeatable.")
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option("--profile", help="Write a trace (.json.gz) of a few training steps."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train the language model (with torchrun on several processes), or resume its training."""
    from training.config import LMConfig

    recipe = load_recipe(config, overrides or [])
    run = Path(recipe.run_dir) / recipe.section("lm", LMConfig).run
    if status or curves:
        from training.run.status import read_status, status_lines, write_curves

        if status:
            found = read_status(run)
            _print(found, status_lines(found), as_json)
        if curves:
            write_curves([run, *(Path(recipe.run_dir) / name for name in against or [])], curves)
            if not as_json:
                print(curves)
        return
    from training.run.folder import check_writable
    from training.train import train

    tell = _printer(dry_run, as_json)
    if not dry_run and os.environ.get("RANK", "0") == "0":  # the first process reports it
        check_writable(run, "run_dir")
    with _resumable(recipe) as stop:
        train(recipe, fresh=fresh, dry_run=tell, stop=stop, profile=profile)


def _printer(dry_run: bool, as_json: bool) -> Callable[[dict[str, Any], list[str]], None] | None:
    """Function that prints what a run would take; None without `--dry-run`."""
    if as_json and not dry_run:
        raise AttuneError("--json goes with --dry-run or --status")
    return partial(_print, as_json=as_json) if dry_run else None


def _print(found: dict[str, Any], lines: list[str], as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        print(*lines, sep="\n")


@contextmanager
def _resumable(recipe: Recipe) -> Iterator[StopSignals]:
    """Around a training run: notes signals, reports a full disk in one line, and ends each of
    several processes when all are done."""
    from training.distributed import leave
    from training.run.signals import RESUMABLE, Stopped, StopSignals

    try:
        with StopSignals() as stop:
            yield stop
    except Stopped:
        leave(RESUMABLE)
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise AttuneError(
            f"{recipe.run_dir}: {error.strerror}; make room and rerun the same command to resume"
        ) from error
    leave(0)


def codec(
    config: ConfigOption,
    overrides: OverridesArgument = None,
    fresh: FreshOption = False,
    dry_run: DryRunOption = False,
    status: StatusOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train EnCodec from scratch (with torchrun on several processes), or resume its training."""
    from training.codec.config import CodecTrainingConfig
    from training.codec.finished import run_folder
    from training.codec.train import train_codec
    from training.run.status import read_status, status_lines

    recipe = load_recipe(config, overrides or [])
    if status:
        out = Path(recipe.section("codec_training", CodecTrainingConfig).out)
        found = read_status(run_folder(out), out)
        _print(found, status_lines(found), as_json)
        return
    tell = _printer(dry_run, as_json)
    with _resumable(recipe) as stop:
        train_codec(recipe, fresh=fresh, dry_run=tell, stop=stop)
