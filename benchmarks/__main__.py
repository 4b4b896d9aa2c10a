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

from benchmarks import captions, codec, plan, scale, stage
from common.cli import run_app
from common.errors import AttuneError

AUDIOSET_ROWS = 2_000_000
CAPTIONS = 5000


Result = tuple[dict[str, Any], list[tuple[str, object, str]]]
"""Figures, and lines of the table: what, how much, the aim."""


def bench_plan() -> Result:
    """Planning AudioSet whole."""
    with tempfile.TemporaryDirectory() as scratch:
        found = plan.run(*plan.write_segments(Path(scratch), AUDIOSET_ROWS))
    return found, [
        ("plan of 2 M AudioSet rows / csv.reader alone", f"{found['ratio']:.2f}", "at most 12"),
        ("its peak memory, all processes, MB", f"{found['peak_mb']}", "below 1500"),
    ]


def bench_captions() -> Result:
    """Captions to prompts."""
    found = captions.run(None, CAPTIONS)
    return found, [
        ("spaCy one text at a time / prompts from captions", f"{found['ratio']:.2f}", "at least 4")
    ]


def bench_codec() -> Result:
    """The codec's encoder at the paper's size."""
    found = codec.run_encoder(threads=os.cpu_count() or 1)
    found["bfloat16_shipped_codec"] = codec.bfloat16_share()
    rows = []
    for size in (1, 4):
        one = found[f"batch_{size}"]
        same = min(share for name, share in one["equal_codes"].items() if "bfloat16" not in name)
        rows += [
            (f"codec, 16 kHz, {size} x 10 s / {one['best_peer']}", one["ratio"], "at most 0.80"),
            ("  its codes equal to each peer's, share", same, "at least 0.999"),
            ("  in bfloat16 / in float32", one["bfloat16_ratio"], "about 0.5"),
        ]
    rows.append((
        "codes that bfloat16 changes, shipped codec, share",
        found["bfloat16_shipped_codec"].get("differ", "refused"), "no bound",
    ))  # fmt: skip
    return found, rows


def bench_stage() -> Result:
    """The pipeline around the codec, on the embedded corpus and on ESC10_ROOT's clips if set."""
    from pipeline.corpus.layout import write_corpus

    found: dict[str, Any] = {}
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        write_corpus(Path(scratch), 0, progress=lambda line: None)
        folders = {"embedded corpus": Path(scratch)}
        if root := os.environ.get("ESC10_ROOT"):
            folders["ESC-10"] = Path(root)
        for name, folder in folders.items():
            one = found[name] = stage.run(folder, threads=os.cpu_count() or 1)
            rows += [
                (f"encode stage / codec alone, {name}", one["stage_ratio"], "at most 1.15"),
                ("  whole command / codec alone", one["command_ratio"], "at most 1.15"),
            ]
    return found, rows


def bench_scale() -> Result:
    """Memory and the text cache, from 1,000 to 100,000 clips; stand-in codec."""
    found = [scale.run(clips) for clips in scale.SIZES]
    first, last = found[0], found[-1]
    sizes = f"{first['clips']:,} -> {last['clips']:,} clips, stand-in codec"
    return {"sizes": found}, [
        (f"driver peak MB, {sizes}", f"{first['driver_mb']} -> {last['driver_mb']}", "constant"),
        ("  worker peak MB", f"{first['worker_mb']} -> {last['worker_mb']}", "constant"),
        ("  planning process peak MB", f"{first['plan_mb']} -> {last['plan_mb']}", "no bound"),
        (
            f"  embedded, of {last['prompts']:,} prompts, {last['unique_prompts']:,} different",
            last["embedded"],
            "once each",
        ),
    ]


def bench_lm() -> Result:
    """Training steps of the language model, and what surrounds them."""
    from benchmarks import lm, lm_io
    from training.config import LMConfig

    threads = os.cpu_count() or 1
    found: dict[str, Any] = {}
    rows: list[tuple[str, object, str]] = []
    for size, aim in (("tiny", "at most 0.80"), ("60M", "at most 0.85")):
        one = found[size] = lm.run_size(size, threads)
        ratios, shares, loss = one["ratios"], one["share_of_peak"], one["loss"]
        rows += [
            (f"training step, {size}, fp32 / Hugging Face's", ratios["fp32"], aim),
            ("  both with fp32 matmul precision medium", ratios["medium"], aim),
            ("  both in bf16", ratios["bf16"], aim),
            ("  ours in bf16 / theirs in fp32", ratios["bf16 to their fp32"], "at most 0.33"),
        ]
        for side in ("ours", "theirs"):
            text = ", ".join(f"{shares[f'{side} {p}']:.2f}" for p in lm.PRECISIONS)
            rows.append((f"  share of the matmul peak, {side}: fp32, medium, bf16", text, "-"))
        text = f"{loss['first']:.2f} -> {loss['last']:.2f}"
        rows.append((f"  loss over {lm.COMPARED} steps", text, "-"))
        for key, bound in (("fp32", "1e-4"), ("medium", "1e-4"), ("bf16 to their fp32", "2e-2")):
            apart = f"{loss[f'apart {key}']:.1e}"
            rows.append((f"    largest difference, {key}", apart, f"at most {bound}"))
    consumed = lm.CLIPS * lm.FRAMES * 4 / found["tiny"]["seconds"]["ours bf16"]
    loader, saving = lm_io.loader_rate(), lm_io.checkpoint_seconds()
    stall = saving["mean_s"] / (LMConfig().checkpoint_every * found["60M"]["seconds"]["ours bf16"])
    found["loader_tokens_per_s"] = round(loader)
    found["checkpoint"] = saving | {"stall": round(stall, 5)}
    rows += [
        ("loader / tokens that tiny in bf16 takes", f"{loader / consumed:.1f}", "at least 20"),
        ("checkpoint of 60M, share of training time", f"{stall:.2%}", "below 5%"),
    ]
    return found, rows


def bench_sampling() -> Result:
    """Sampling, and what a step of a long clip costs."""
    import torch

    from benchmarks import sampling
    from training.sampling.packed import default_kind, processor_of

    threads = os.cpu_count() or 1
    found: dict[str, Any] = {}
    rows: list[tuple[str, object, str]] = []
    aims = {"tiny": ("at most 0.30", "at most 0.40"), "60M": ("at most 0.40", "at most 0.50")}
    for size, exact in aims.items():
        one = found[size] = sampling.run_size(size, threads)
        for clips, aim in zip(sampling.BATCHES, exact, strict=True):
            ratio, speed = one[f"batch_{clips}"]["ratio"], one[f"batch_{clips}"]["frames_per_s"]
            rows.append(
                (f"sampling, {size}, batch {clips}, fp32 / Hugging Face's", ratio["fp32"], aim)
            )
            for kind in ("bf16", "int8"):
                default = kind == default_kind(processor_of(torch.device("cpu")), clips)
                wanted = "at most 0.28" if default and (size, clips) == ("60M", 1) else "-"
                name = f"  ours in {kind}{', the default' if default else ''}"
                rows.append((name, ratio[kind], wanted))
            text = ", ".join(f"{value:.0f}" for value in speed.values())
            rows.append((f"  frames/s: {', '.join(speed)}", text, "-"))
    costs = found["ms_per_step_at_frame"] = sampling.step_costs("60M", threads)
    text = ", ".join(f"{at}: {ms:.1f}" for at, ms in costs.items())
    rows.append(("ms per step of 60M, fp32, batch 1, at frame", text, "flat but for attention"))
    return found, rows


def bench_lm_gpu() -> Result:
    """A training step of the 300M model on a GPU."""
    import torch

    from benchmarks import lm_gpu

    if not torch.cuda.is_available():
        return {"measured": False}, [("training step, 300M, GPU", "not measured", "no GPU here")]
    found = lm_gpu.run()
    rows: list[tuple[str, object, str]] = []
    for name, one in found["variants"].items():
        text = one.get("error") or f"{one['mfu']:.1%}"
        rows.append((f"300M on {found['device']}, {name}: MFU", text, "at least 50%"))
    rows += [
        ("  tokens/s of the best / Hugging Face's", found["tokens_per_s_to_hugging_face"], "-"),
        ("  waiting for data", f"{found['loader_wait']:.2%}", "below 2%"),
    ]
    return found, rows


BENCHMARKS: dict[str, Callable[[], Result]] = {
    "plan": bench_plan,
    "captions": bench_captions,
    "codec": bench_codec,
    "stage": bench_stage,
    "scale": bench_scale,
    "lm": bench_lm,
    "lm_gpu": bench_lm_gpu,
    "sampling": bench_sampling,
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
    rows: list[tuple[str, object, str]] = []
    for name in names or BENCHMARKS:
        print(f"{name} ...", flush=True)
        results[name], lines = BENCHMARKS[name]()
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
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


if __name__ == "__main__":
    run_app(app)
