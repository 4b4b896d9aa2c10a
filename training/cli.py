"""`python -m training`: train, generate."""

from __future__ import annotations

import errno
import json
import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from common.cli import ConfigOption, JsonOption, OverridesArgument, print_json
from common.config import Recipe, load_recipe
from common.errors import AttuneError

if TYPE_CHECKING:
    from training.signals import StopSignals

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Train codec and language model, generate and evaluate audio.",
)


@app.command()
def lm(
    config: ConfigOption,
    overrides: OverridesArgument = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete what this run has and start over.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the run would take, and stop.")
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Say where the run stands, also while it trains.")
    ] = False,
    curves: Annotated[
        Path | None, typer.Option("--curves", help="Draw the run's curves into this PNG.")
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option("--with", help="Another run to draw; may be repeated.")
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option("--profile", help="Write a trace (.json.gz) of a few steps on the way."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train the language model (under torchrun: on all its processes); goes on where it stopped."""
    if status or curves:
        _look(load_recipe(config, overrides or []), status, curves, against or [], as_json)
        return
    from training.preflight import Preflight
    from training.train import train

    def tell(estimate: Preflight) -> None:
        if as_json:
            print_json(estimate.as_dict())
        else:
            print(*estimate.lines(), sep="\n")
        estimate.check()

    if as_json and not dry_run:
        raise AttuneError("--json goes with --dry-run or --status")
    recipe = load_recipe(config, overrides or [])
    with _resumable(recipe) as stop:
        train(recipe, fresh=fresh, dry_run=tell if dry_run else None, stop=stop, profile=profile)


@contextmanager
def _resumable(recipe: Recipe) -> Iterator[StopSignals]:
    """Around a training run, alone or as one of several processes: signals are noted, a full disk
    is one line, and the process ends once all are through."""
    from training.distributed import leave
    from training.signals import Stopped, StopSignals

    try:
        with StopSignals() as stop:
            yield stop
    except Stopped as stopped:
        leave(stopped.status)
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise AttuneError(
            f"{recipe.run_dir}: {error.strerror}; make room and rerun the same command to go on"
        ) from error
    leave(0)


def _look(
    recipe: Recipe, status: bool, curves: Path | None, against: list[str], as_json: bool
) -> None:
    from training.config import LMConfig
    from training.watch import read_status, status_lines, write_curves

    run = Path(recipe.run_dir) / recipe.section("lm", LMConfig).run
    if status:
        found = read_status(run)
        if as_json:
            print_json(found)
        else:
            print(*status_lines(found), sep="\n")
    if curves:
        write_curves([run, *(Path(recipe.run_dir) / name for name in against)], curves)
        if not as_json:
            print(curves)


@app.command()
def codec(config: ConfigOption, overrides: OverridesArgument = None) -> None:
    """Train EnCodec from scratch (under torchrun: on all its processes); goes on where it
    stopped."""
    from training.codec.config import CodecTrainingConfig
    from training.codec.train import train_codec

    recipe = load_recipe(config, overrides or [])
    section = recipe.section("codec_training", CodecTrainingConfig)
    with _resumable(recipe) as stop:
        train_codec(recipe, section, Console(), stop)


@app.command()
def report(config: ConfigOption, overrides: OverridesArgument = None) -> None:
    """Judge the recipe's models against their prompts; writes report.html and report.json."""
    from training.evaluation.config import ReportConfig
    from training.evaluation.report import write_report

    recipe = load_recipe(config, overrides or [])
    path = write_report(recipe, recipe.section("report", ReportConfig), Console(stderr=True))
    print(path)


@app.command()
def generate(
    config: ConfigOption,
    overrides: OverridesArgument = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="What to make; may be repeated.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="Text file with one prompt per line.")
    ] = None,
    run: Annotated[str, typer.Option("--run", help="Training run (default: lm.run).")] = "",
    duration: Annotated[
        float | None, typer.Option("--duration", help="Seconds (default: sampling.duration_s).")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Clips per prompt.")] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of each first clip.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the clips.")] = None,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Generate clips: a wav each, and a json beside it that tells how it was made."""
    from training.config import LMConfig, SamplingConfig
    from training.lm.generate import Sampler

    recipe = load_recipe(config, overrides or [])
    wanted = _prompts(prompt or [], prompts)
    if duration is not None and not (math.isfinite(duration) and duration > 0):
        raise AttuneError(f"--duration {duration:g}: expected a number of seconds above 0")
    _check_device(device)
    sampling = recipe.section("sampling", SamplingConfig)
    name = run or recipe.section("lm", LMConfig).run
    folder = out or Path(recipe.run_dir) / "generated" / name
    if any(path.exists() and not path.is_dir() for path in (folder, *folder.parents)):
        raise AttuneError(f"--out {folder}: not a folder, or below a file; name a folder")
    sampler = Sampler.load(recipe, Path(recipe.run_dir) / name, device)
    seconds = duration if duration is not None else min(sampling.duration_s, sampler.trained_s)
    jobs = [(text, seed + i) for text in wanted for i in range(n)]
    print(
        f"{len(jobs)} clips of {seconds:g} s from {sampler.checkpoint} into {folder}",
        file=sys.stderr,
    )
    wavs, _ = sampler.generate(
        [text for text, _ in jobs], seconds, [number for _, number in jobs], sampling, _report
    )
    normalized = sampler.normalize([text for text, _ in jobs])
    made = []
    for i, ((text, number), plain, wav) in enumerate(zip(jobs, normalized, wavs, strict=True)):
        facts = {
            "prompt": text,
            "normalized_prompt": plain,
            "seed": number,
            "duration_s": len(wav) / sampler.codec.sample_rate,
            "sample_rate": sampler.codec.sample_rate,
            "checkpoint": str(sampler.checkpoint),
            "step": sampler.description["step"],
            "codec_id": sampler.codec.codec_id,
            "text_encoder_id": sampler.encoder.text_encoder_id,
            "cfg": sampling.cfg,
            "top_k": sampling.top_k,
            "temperature": sampling.temperature,
        }
        made.append(_write(folder, f"{i:03d}-{_slug(text)}-seed{number}", wav, facts))
    if as_json:
        print_json(made)
    else:
        for facts in made:
            print(facts["wav"])


def _check_device(name: str) -> None:
    import torch

    try:
        torch.empty(1, device=torch.device(name)).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise AttuneError(f"--device {name}: not available here; use cpu or cuda") from error


def _prompts(given: list[str], file: Path | None) -> list[str]:
    prompts = list(given)
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise AttuneError(f"prompts {file}: cannot be read as text: {error}") from error
        prompts += [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise AttuneError("nothing to generate: give --prompt TEXT or --prompts FILE")
    return prompts


def _write(folder: Path, name: str, wav: Any, facts: dict[str, Any]) -> dict[str, Any]:
    import numpy as np
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.wav"
    soundfile.write(path, np.clip(wav, -1.0, 1.0), facts["sample_rate"], subtype="PCM_16")
    path.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")
    return facts | {"wav": str(path)}


def _report(done: int, total: int) -> None:
    if sys.stderr.isatty():
        end = "\n" if done == total else "\r"
        print(f"step {done}/{total}", end=end, file=sys.stderr, flush=True)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "prompt"
