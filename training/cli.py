"""`python -m training`: train, generate, export and import."""

from __future__ import annotations

import errno
import math
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from common.cli import ConfigOption, JsonOption, OverridesArgument, print_json
from common.config import Recipe, load_recipe
from common.errors import AttuneError
from training.evaluation.config import Captions, Framing, Preset
from training.lm.outputs import Format, Prompt, read_prompts

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
def evaluate(
    target: Annotated[
        Path, typer.Argument(metavar="RUN|DIR", help="A trained run, or a folder of clips.")
    ],
    overrides: OverridesArgument = None,
    reference: Annotated[
        str, typer.Option("--reference", help="Real clips: a folder, or a data folder of shards.")
    ] = "",
    config: Annotated[
        str, typer.Option("--config", help="Recipe of the run; a folder of clips needs none.")
    ] = "",
    against: Annotated[
        Path | None, typer.Option("--against", help="Another run or folder to compare with.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Of the shards.")] = "test",
    preset: Annotated[
        Preset | None, typer.Option("--preset", help="A benchmark's protocol; goes with --list.")
    ] = None,
    listed: Annotated[
        Path | None, typer.Option("--list", help="AudioCaps' test.csv or musiccaps-public.csv.")
    ] = None,
    captions: Annotated[
        Captions, typer.Option("--captions", help="Which of a clip's captions: see the README.")
    ] = "first",
    clips: Annotated[
        int | None, typer.Option("--clips", min=2, help="Generate for so many prompts at most.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of generated clips.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for figures and page.")] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Backbones (default: ~/.cache/attune/weights).")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Embeddings (~/.cache/attune/embeddings).")
    ] = None,
    codec: Annotated[
        str, typer.Option("--codec", help="For latents (default: the recipe's, builtin:sfx-small).")
    ] = "",
    framing: Annotated[
        Framing,
        typer.Option("--framing", help="VGGish's windows: every 0.48 s, or as Google's code."),
    ] = "half",
    loudness: Annotated[
        float | None,
        typer.Option("--loudness", min=-70, max=0, help="Bring all clips to this many LUFS."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Measure generated clips against real ones: FAD, KL, CLAP; writes metrics.json and a page."""
    from training.checkpoint import latest_checkpoint
    from training.evaluation.cache import default_cache
    from training.evaluation.clip_sets import read_preset, read_reference, shuffled
    from training.evaluation.evaluate import Settings
    from training.evaluation.evaluate import evaluate as measure
    from training.evaluation.generated_set import generate_set
    from training.evaluation.weights import default_weights

    if not reference:
        raise AttuneError("--reference is missing: a folder of real clips, or of shards")
    if (preset is None) != (listed is None):
        raise AttuneError("--preset and --list go together")
    if overrides and not config:
        raise AttuneError(f"override {overrides[0]!r} needs --config")
    _check_device(device)
    recipe = load_recipe(config, overrides or []) if config else None
    if preset is not None and listed is not None:
        real = read_preset(preset, listed, Path(reference), captions)
    else:
        real = read_reference(reference, split)
    console = Console(stderr=True)
    folders: list[Path] = []
    for path in (target, against):
        if path is None:
            continue
        if not path.exists() and recipe is not None:  # a run by its name
            path = Path(recipe.run_dir) / path
        if latest_checkpoint(path) is not None:
            if recipe is None:
                raise AttuneError(f"{path} is a trained run: --config names its recipe")
            prompts = [clip for clip in shuffled(real.clips) if clip.prompts][:clips]
            made = path.parent / "evaluated" / path.name
            path = generate_set(recipe, path, prompts, made, console, device, seed)
        folders.append(path)
    result = out or folders[0] / "evaluation"
    settings = Settings(
        weights or default_weights(),
        cache or default_cache(),
        codec or (recipe.codec.path if recipe else Settings.codec),
        framing,
        loudness,
        device=device,
    )
    found = measure(folders[0], folders[1] if against else None, real, settings, result, console)
    if as_json:
        print_json(found)
        return
    for name, row in found["metrics"].items():
        known = row["low"] is not None
        interval = f"[{row['low']:.4g}, {row['high']:.4g}]" if known else "too few for an interval"
        print(f"{name:22s} {row['value']:.4g}  {interval}  N = {row['clips']}")
    for name, row in found.get("comparison", {}).get("differences", {}).items():
        verdict = f"{row['better']} is better" if row["more_than_noise"] else "no more than noise"
        print(f"{name:22s} {row['value']:+.4g}  [{row['low']:+.4g}, {row['high']:+.4g}]  {verdict}")
    print(result / "metrics.html")


@app.command()
def weights(
    folder: Annotated[
        Path | None, typer.Option("--weights", help="Where they go (default: ~/.cache/attune).")
    ] = None,
) -> None:
    """Fetch the backbones that `evaluate` measures with: VGGish, PaSST, CLAP (about 1.6 GB)."""
    from training.evaluation.weights import default_weights, fetch_all

    if failed := fetch_all(folder or default_weights(), print):
        raise AttuneError(
            f"{', '.join(failed)} not fetched; metrics that need them are left out, the others run"
        )


@app.command()
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
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
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
    _check_device(device)
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


@app.command()
def play(
    config: ConfigOption,
    overrides: OverridesArgument = None,
    run: Annotated[
        list[str] | None, typer.Option("--run", help="Training run; repeat it to compare.")
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; others than this machine's: yours.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8400,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
) -> None:
    """Serve a local page: type prompts, hear and see clips, compare two checkpoints."""
    import uvicorn

    from training.config import LMConfig, SamplingConfig
    from training.lm.generate import Sampler
    from training.play import Studio, build_app

    recipe = load_recipe(config, overrides or [])
    _check_device(device)
    names = run or [recipe.section("lm", LMConfig).run]
    samplers = {name: Sampler.load(recipe, Path(recipe.run_dir) / name, device) for name in names}
    studio = Studio(samplers, recipe.section("sampling", SamplingConfig))
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise AttuneError(
                f"cannot listen on {host}:{port}: {error.strerror}; take another --port"
            ) from error
        print(f"http://{host}:{port} ({', '.join(names)}); Ctrl-C ends it", flush=True)
        hosts = ["127.0.0.1", "localhost", "[::1]", host]
        # Whoever opens it to others names it as they do: by an address that is not known here.
        app = build_app(studio, ["*"] if host in ("0.0.0.0", "::") else hosts)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


def _beginning(path: Path, rate: int) -> NDArray[np.float32]:
    from common.audio import AudioError, read_audio, resample

    try:
        audio = read_audio(path)
    except (AudioError, OSError) as error:
        raise AttuneError(f"--continue {path}: {error}") from error
    return resample(audio.wav, audio.sample_rate, rate)


@app.command("export")
def export_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="Folder of a run, a checkpoint or a codec, or builtin:NAME."
        ),
    ],
    to: Annotated[Path, typer.Option("--to", help="Folder to write; or an earlier export.")],
    overrides: OverridesArgument = None,
    config: Annotated[
        str, typer.Option("--config", help="The run's recipe (default: as the run keeps it).")
    ] = "",
    raw: Annotated[
        bool, typer.Option("--raw", help="Weights as training left them, not their average.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a run, or a codec, as a folder that Hugging Face's library plays by itself."""
    from training.interop.transfer import export

    if overrides and not config:
        raise AttuneError("overrides go with --config")
    recipe = load_recipe(config, overrides or []) if config else None
    _told(export(source, to, recipe, raw), as_json)


@app.command("import")
def import_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Folder, file or hub id: facebook/musicgen-small, facebook/encodec_32khz.",
        ),
    ],
    to: Annotated[Path, typer.Option("--to", help="Folder to write; new or empty.")],
    only: Annotated[str, typer.Option("--only", help="codec: take the codec alone.")] = "",
    codec: Annotated[
        str, typer.Option("--codec", help="Use this codec, not a copy of the one inside.")
    ] = "",
    text_encoder: Annotated[
        str, typer.Option("--text-encoder", help="Use this encoder, not a copy of the one inside.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Take in a model or a codec that others trained: sampled, judged, fine-tuned like our own."""
    from training.interop.transfer import import_

    if only not in ("", "codec"):
        raise AttuneError(f"--only {only}: expected codec")
    _told(import_(source, to, "codec" if only else "all", codec, text_encoder), as_json)


def _told(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(facts)
    else:
        print(*(f"{key}: {value}" for key, value in facts.items()), sep="\n")


def _check_device(name: str) -> None:
    import torch

    try:
        torch.empty(1, device=torch.device(name)).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise AttuneError(f"--device {name}: not available here; use cpu or cuda") from error


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
