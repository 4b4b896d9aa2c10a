"""Command-line manners shared by both programs: one clear line on a mistake, quiet libraries."""

from __future__ import annotations

import json
import os
import signal
import sys
from types import FrameType
from typing import Annotated, Any

import typer

from common.errors import AttuneError

ConfigOption = Annotated[str, typer.Option("--config", help="Recipe file, e.g. configs/demo.yaml.")]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, e.g. lm.steps=200 seed=1."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document for scripts.")]


def quiet_environment() -> None:
    """Keep libraries from reporting, downloading or drawing bars of their own."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def print_json(document: Any) -> None:
    """Write one JSON document to stdout."""
    json.dump(document, sys.stdout, indent=2, sort_keys=True)
    sys.stdout.write("\n")


class Interrupted(BaseException):
    """Ctrl-C. Not `KeyboardInterrupt`, which typer would end by itself without a word."""


def run_app(app: typer.Typer) -> None:
    """Run a typer application; a user's mistake ends with one line on stderr and status 1."""
    quiet_environment()
    signal.signal(signal.SIGINT, _interrupt)
    try:
        app()
    except AttuneError as error:
        # Under torchrun all processes meet the same mistake; the first one tells it.
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except Interrupted:
        print("interrupted; rerun the same command to go on where it stopped", file=sys.stderr)
        sys.exit(130)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise Interrupted


def check_device(name: str) -> None:
    """Refuse a device that is not there.

    Raises:
        AttuneError: naming it.
    """
    import torch

    try:
        torch.empty(1, device=torch.device(name)).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise AttuneError(f"--device {name}: not available here; use cpu or cuda") from error
