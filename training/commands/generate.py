"""`generate`, `play`: sound out of prompts."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from common.cli import (
    ConfigOption,
    DeviceOption,
    JsonOption,
    OverridesArgument,
    choose_device,
    print_json,
)
from common.config import load_recipe
from common.errors import AttuneError
from training.commands.serving import LOCAL_NAMES, listening, serve
from training.lm.outputs import Format, Prompt, read_prompts


def generate(
    config: ConfigOption,
    overrides: OverridesArgument = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="What to make; may be repeated.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="File of prompts: a line each, or .csv or .jsonl."),
    ] = None,
    run: Annotated[str, typer.Option("--run", help="Training run (default: lm.run).")] = "",
    duration: Annotated[
        float | None, typer.Option("--duration", help="Seconds (default: sampling.duration_s).")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Clips per prompt.")] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of each first clip.")] = 0,
    continue_from: Annotated[
        Path | None, typer.Option("--continue", help="Audio file that every clip begins with.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the clips.")] = None,
    kind: Annotated[Format, typer.Option("--format", help="wav or flac.")] = "wav",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Generate clips: an audio file each, and a json beside it that tells how it was made."""
    from training.config import LMConfig, SamplingConfig
    from training.lm.generate import Sampler
    from training.lm.outputs import at_loudness, slug, write_clip

    recipe = load_recipe(config, overrides or [])
    wanted = _wanted(prompt or [], prompts, n, seed)
    if duration is not None and not (math.isfinite(duration) and duration > 0):
        raise AttuneError(f"--duration {duration:g}: expected a number of seconds above 0")
    device = choose_device(device)
    sampling = recipe.section("sampling", SamplingConfig)
    name = run or recipe.section("lm", LMConfig).run
    folder = out or Path(recipe.run_dir) / "generated" / name
    if any(path.exists() and not path.is_dir() for path in (folder, *folder.parents)):
        raise AttuneError(f"--out {folder}: not a folder, or below a file; name a folder")
    sampler = Sampler.load(recipe, Path(recipe.run_dir) / name, device)
    rate, trained = sampler.codec.sample_rate, sampler.trained_s
    beginning = None if continue_from is None else _beginning(continue_from, rate)
    seconds = duration if duration is not None else min(sampling.duration_s, trained)
    print(
        f"{len(wanted)} clips of {seconds:g} s from {sampler.checkpoint} into {folder}",
        file=sys.stderr,
    )
    if seconds > trained:
        print(
            f"longer than the {trained:g} s that it was trained for: goes on in windows of that "
            f"length, each beginning with the last {sampling.overlap:.0%} of the one before",
            file=sys.stderr,
        )
    texts, seeds = [job.text for job in wanted], [job.seed or 0 for job in wanted]
    began = time.monotonic()
    sampling = sampler.settled(sampling, min(len(texts), sampling.batch_size))
    report = partial(_report, began, len(wanted) * seconds)
    waves, _ = sampler.generate(texts, seconds, seeds, sampling, report, continue_from=beginning)
    spent = time.monotonic() - began
    total = len(wanted) * seconds
    print(f"{total:g} s of sound in {spent:.1f} s: {total / spent:.2f}x real time", file=sys.stderr)
    shared = sampler.facts(sampling) | {
        "continued": None if continue_from is None else str(continue_from)
    }
    made = []
    for i, (job, plain, wave) in enumerate(
        zip(wanted, sampler.normalize(texts), waves, strict=True)
    ):
        if sampling.loudness is not None:
            wave = at_loudness(wave, rate, sampling.loudness)
        facts = {
            "prompt": job.text,
            "normalized_prompt": plain,
            "seed": job.seed,
            "duration_s": len(wave) / rate,
            "sample_rate": rate,
            **shared,
        }
        stem = job.name or f"{i:03d}-{slug(job.text)}-seed{job.seed}"
        made.append(write_clip(folder, stem, wave, facts, kind))
    if as_json:
        print_json(made)
    else:
        for facts in made:
            print(facts[kind])


def play(
    config: ConfigOption,
    overrides: OverridesArgument = None,
    run: Annotated[
        list[str] | None, typer.Option("--run", help="Training run; repeat it to compare.")
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            "--host", help="Address to listen on; 0.0.0.0 lets other machines in, without a login."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8400,
    device: DeviceOption = "auto",
) -> None:
    """Serve a local page: type prompts, hear and see clips, compare two checkpoints."""
    from training.config import LMConfig, SamplingConfig
    from training.lm.generate import Sampler
    from training.play import Studio, build_app

    recipe = load_recipe(config, overrides or [])
    device = choose_device(device)
    names = run or [recipe.section("lm", LMConfig).run]
    samplers = {name: Sampler.load(recipe, Path(recipe.run_dir) / name, device) for name in names}
    studio = Studio(samplers, recipe.section("sampling", SamplingConfig))
    with listening(host, port) as listener:
        name = f"[{host}]" if ":" in host else host
        print(f"http://{name}:{port} ({', '.join(names)}); Ctrl-C ends it", flush=True)
        # Whoever opens it to others names it as they do: by an address that is not known here.
        app = build_app(studio, ["*"] if host in ("0.0.0.0", "::") else [*LOCAL_NAMES, name])
        serve(app, listener)


def _beginning(path: Path, rate: int) -> NDArray[np.float32]:
    from common.audio import AudioError, read_audio, resample

    try:
        audio = read_audio(path)
    except (AudioError, OSError) as error:
        raise AttuneError(f"--continue {path}: {error}") from error
    return resample(audio.wav, audio.sample_rate, rate)


def _wanted(given: list[str], file: Path | None, n: int, seed: int) -> list[Prompt]:
    """A job per clip, its seed decided; names told apart."""
    prompts = [Prompt(text) for text in given] + (read_prompts(file) if file else [])
    if not prompts:
        raise AttuneError("nothing to generate: give --prompt TEXT or --prompts FILE")
    jobs = []
    for one in prompts:
        first = seed if one.seed is None else one.seed
        for i in range(n):
            name = f"{one.name}-{i}" if one.name and n > 1 else one.name
            jobs.append(Prompt(one.text, first + i, name))
    names = [job.name for job in jobs if job.name]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise AttuneError(f"prompts {file}: name {twice[0]!r} stands there twice")
    return jobs


def _report(began: float, seconds: float, done: int, total: int) -> None:
    if sys.stderr.isatty():
        spent = time.monotonic() - began
        speed = seconds * done / total / max(spent, 1e-9)
        left = spent / done * (total - done)
        end = "\n" if done == total else "\r"
        line = f"step {done}/{total}  {speed:.2f}x real time  {left:.0f} s left  "
        print(line, end=end, file=sys.stderr, flush=True)
