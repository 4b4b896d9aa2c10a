"""`make bench`: every benchmark. Each figure is a ratio that was taken in one run on this machine.

    python -m benchmarks [NAME ...] [--out runs/bench.json]

A slow or busy machine slows both sides of a ratio. Seconds by themselves mean little.
Set `OMP_NUM_THREADS` to measure with another number of threads.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.measure import Row
from common.cli import run_app
from common.errors import AttuneError

NAMES = ("plan", "captions", "codec", "stage", "scale", "lm", "lm_gpu", "sampling")

app = typer.Typer(add_completion=False)


@app.command()
def bench(
    names: Annotated[
        list[str] | None, typer.Argument(help=f"Any of {', '.join(NAMES)}; all by default.")
    ] = None,
    out: Annotated[Path, typer.Option(help="JSON file for the figures.")] = Path("runs/bench.json"),
) -> None:
    """Run benchmarks, print one table and write the figures to a file."""
    unknown = sorted(set(names or ()) - set(NAMES))
    if unknown:
        raise AttuneError(f"no benchmark {unknown[0]!r}; choose from {', '.join(NAMES)}")
    machine = (
        f"{os.cpu_count()} CPUs, {_processor()}, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}"
    )
    results: dict[str, Any] = {"date": date.today().isoformat(), "machine": machine}
    rows: list[Row] = []
    for name in names or NAMES:
        print(f"{name} ...", flush=True)
        results[name], lines = importlib.import_module(f"benchmarks.{name}").bench()
        rows += lines
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=2) + "\n")
    print(f"\n{results['date']}, {machine}")
    width = max(len(row[0]) for row in rows)
    for title, value, aim in rows:
        print(f"{title:<{width}}  {value!s:>12}  ({aim})")
    print(f"figures: {out}")


def _processor() -> str:
    try:
        models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        models = []
    return models[0] if models else platform.processor()


if __name__ == "__main__":
    run_app(app)
