"""`make bench`: every benchmark, each figure a ratio taken in one run on this machine.

    python -m benchmarks [NAME ...] [--out runs/bench.json]

A machine that is slow or busy slows both sides of a ratio; seconds by themselves mean little.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import captions, codec, plan
from common.cli import run_app
from common.errors import AttuneError

AUDIOSET_ROWS = 2_000_000
CAPTIONS = 5000


def bench_plan() -> tuple[dict[str, Any], list[tuple[str, str, str]]]:
    """Planning AudioSet whole."""
    with tempfile.TemporaryDirectory() as scratch:
        found = plan.run(*plan.write_segments(Path(scratch), AUDIOSET_ROWS))
    return found, [
        ("plan of 2 M AudioSet rows / csv.reader alone", f"{found['ratio']:.2f}", "at most 12"),
        ("its peak memory, all processes, MB", f"{found['peak_mb']}", "below 1500"),
    ]


def bench_captions() -> tuple[dict[str, Any], list[tuple[str, str, str]]]:
    """Captions to prompts."""
    found = captions.run(None, CAPTIONS)
    return found, [
        ("spaCy one text at a time / prompts from captions", f"{found['ratio']:.2f}", "at least 4")
    ]


def bench_codec() -> tuple[dict[str, Any], list[tuple[str, str, str]]]:
    """The codec's encoder at the paper's size."""
    found = codec.run_encoder(threads=os.cpu_count() or 1)
    return found, [
        (
            f"codec, 16 kHz, {size} x 10 s / {found[f'batch_{size}']['best_peer']}",
            f"{found[f'batch_{size}']['ratio']:.2f}",
            "at most 0.80",
        )
        for size in (1, 4)
    ]


def bench_encode() -> tuple[dict[str, Any], list[tuple[str, str, str]]]:
    """The encode stage on the embedded corpus."""
    from pipeline.corpus.layout import write_corpus

    with tempfile.TemporaryDirectory() as scratch:
        write_corpus(Path(scratch), 0, progress=lambda line: None)
        found = codec.run_stage(Path(scratch), "builtin:sfx-small", threads=1)
    return found, [
        ("encode stage / codec alone, embedded corpus", f"{found['ratio']:.2f}", "at most 1.15")
    ]


BENCHMARKS: dict[str, Callable[[], tuple[dict[str, Any], list[tuple[str, str, str]]]]] = {
    "plan": bench_plan,
    "captions": bench_captions,
    "codec": bench_codec,
    "encode": bench_encode,
}

app = typer.Typer(add_completion=False)


@app.command()
def bench(
    names: Annotated[
        list[str] | None, typer.Argument(help=f"Of {', '.join(BENCHMARKS)}; all by default.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("runs/bench.json"),
) -> None:
    """Run benchmarks, print one table, keep the figures."""
    unknown = sorted(set(names or ()) - set(BENCHMARKS))
    if unknown:
        raise AttuneError(f"no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    machine = f"{os.cpu_count()} CPUs, {_processor()}, Python {platform.python_version()}"
    results: dict[str, Any] = {"date": date.today().isoformat(), "machine": machine}
    rows = []
    for name in names or BENCHMARKS:
        print(f"{name} ...", flush=True)
        results[name], told = BENCHMARKS[name]()
        rows += told
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=2) + "\n")
    print(f"\n{results['date']}, {machine}")
    width = max(len(row[0]) for row in rows)
    for title, value, aim in rows:
        print(f"{title:<{width}}  {value:>8}  ({aim})")
    print(f"figures: {out}")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


if __name__ == "__main__":
    run_app(app)
