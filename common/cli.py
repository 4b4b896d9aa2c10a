"""What both command lines share: options, one line for a user's mistake, quiet libraries."""

from __future__ import annotations

import json
import os
import signal
import sys
from types import FrameType
from typing import Annotated, Any

import typer

from common.errors import AttuneError, one_line

ConfigOption = Annotated[str, typer.Option("--config", help="Recipe file, e.g. configs/demo.yaml.")]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, e.g. lm.steps=200 seed=1."),
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="auto (a GPU if there is one), cpu or cuda.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document for scripts.")]


def quiet_environment() -> None:
    """Keep libraries from sending usage reports and drawing their own progress bars."""
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
    """Ctrl-C. Not `KeyboardInterrupt`: typer would exit on that without a message."""


def run_app(app: typer.Typer) -> None:
    """Run a typer application; a user's mistake ends with one line on stderr and status 1."""
    quiet_environment()
    signal.signal(signal.SIGINT, _interrupt)
    try:
        app()
    except AttuneError as error:
        # Under torchrun all processes meet the same mistake, so only the first reports it. The
        # exception: errors that may happen in only one process.
        rank = os.environ.get("RANK", "0")
        if rank == "0" or error.every_rank_reports:
            where = "" if rank == "0" else f" (process {rank})"
            print(f"error{where}: {one_line(error, limit=10_000)}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        torch = sys.modules.get("torch")
        if torch is None or not isinstance(error, torch.OutOfMemoryError):
            raise
        # Only the first sentence: the rest of the message is about the allocator.
        print(
            f"error: {str(error).split('. ')[0]}; use a smaller lm.micro_batch or "
            "sampling.batch_size, or another --device",
            file=sys.stderr,
        )
        sys.exit(1)
    except Interrupted:
        print("interrupted; rerun the same command to resume", file=sys.stderr)
        sys.exit(130)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise Interrupted


def choose_device(name: str) -> str:
    """The device that `--device` names: `auto` is a GPU if there is a usable one, else the CPU.

    Raises:
        AttuneError: there is no such device.
    """
    import torch

    if name == "auto":
        if not torch.cuda.is_available():
            return "cpu"
        try:
            return choose_device("cuda")
        except AttuneError as error:
            reason = one_line(error.__cause__)
            print(f"the GPU cannot be used ({reason}); using the CPU", file=sys.stderr)
            return "cpu"
    try:
        torch.empty(1, device=torch.device(name)).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise AttuneError(f"--device {name}: not available here; use auto, cpu or cuda") from error
    return name
