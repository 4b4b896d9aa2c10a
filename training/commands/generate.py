"""`generate`, `play`: sound from prompts."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import Counter
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from typer import Option

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
from training.commands.options import AsIsOption, HostOption
from training.sampling.outputs import Format, Prompt, read_prompts


def generate(
    config: ConfigOption,
    overrides: OverridesArgument = None,
    prompt: Annotated[list[str] | None, Option(help="Text of a clip; may be repeated.")] = None,
    prompts: Annotated[Path | None, Option(help="Prompts: a table, or one per line.")] = None,
    run: Annotated[str, Option(help="Training run (default: lm.run).")] = "",
    duration: Annotated[
        float | None, Option(help="Seconds (default: sampling.duration_s).")
    ] = None,
    n: Annotated[int, Option(min=1, help="Clips per prompt.")] = 1,
    seed: Annotated[int, Option(min=0, help="Seed of each prompt's first clip.")] = 0,
    as_is: AsIsOption = False,
    continue_from: Annotated[
        Path | None, Option("--continue", help="Audio file that every clip continues.")
    ] = None,
    out: Annotated[Path | None, Option(help="Folder for the clips.")] = None,
    kind: Annotated[Format, Option("--format", help="wav or flac.")] = "wav",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Generate clips; writes an audio file for each, and a JSON file that says how it was made."""
    from common.audio import AudioError, read_audio, resample
    from common.loudness import at_loudness
    from training.config import LMConfig
    from training.evaluation.metrics.backbones.backbone import file_hash
    from training.sampling.config import SamplingConfig
    from training.sampling.loop import OVERLAP
    from training.sampling.outputs import check_folder, find_place, slug, write_clip
    from training.sampling.sampler import Sampler

    recipe = load_recipe(config, overrides or [])
    wanted = _wanted(prompt or [], prompts, n, seed)
    if duration is not None and not (math.isfinite(duration) and duration > 0):
        raise AttuneError(f"--duration {duration:g}: expected a number of seconds above 0")
    device = choose_device(device)
    sampling = recipe.section("sampling", SamplingConfig)
    name = run or recipe.section("lm", LMConfig).run
    folder = out or Path(recipe.run_dir) / "generated" / name
    if any(os.path.exists(path) and not os.path.isdir(path) for path in (folder, *folder.parents)):
        raise AttuneError(f"--out {folder}: not a folder, or below a file; name a folder")
    sampler = Sampler.load(recipe, Path(recipe.run_dir) / name, device)
    codec, trained = sampler.codec, sampler.trained_s
    rate = codec.sample_rate
    beginning = None
    if continue_from is not None:
        try:
            audio = read_audio(continue_from)
        except (AudioError, OSError) as error:
            raise AttuneError(f"--continue {continue_from}: {error}") from error
        beginning = resample(audio.wav, audio.sample_rate, rate)
    seconds = duration if duration is not None else min(sampling.duration_s, trained)
    texts, seeds = [job.text for job in wanted], [job.seed or 0 for job in wanted]
    # The same kind of weights for all batches, also after an interruption.
    sampling = sampler.settled(sampling, min(len(texts), sampling.batch_size))
    shared = {
        "duration_s": max(1, round(seconds * codec.frame_rate)) * codec.hop / rate,
        "sample_rate": rate,
        **sampler.facts(sampling),
        "checkpoint_sha256": file_hash(sampler.checkpoint / "model.safetensors"),
        "continued": None if continue_from is None else str(continue_from),
        "continued_sha256": None if continue_from is None else file_hash(continue_from),
    }
    say = partial(print, file=sys.stderr)
    heard = sampler.normalize(texts, as_is=as_is, sources=[job.source for job in wanted])
    avoided = [text for text in (sampling.negative_prompt,) if text]
    avoided_heard = sampler.normalize(avoided, as_is=as_is)
    for text, plain in dict.fromkeys(zip(texts + avoided, heard + avoided_heard, strict=True)):
        if plain != text:
            say(f"{text!r} heard as: {plain}")
    unheard = sampler.unheard(heard + avoided_heard)
    for warning in dict.fromkeys(chain.from_iterable(unheard)):
        say(f"warning: {warning}")
    orders = []
    for i, (job, plain) in enumerate(zip(wanted, heard, strict=True)):
        facts = {"prompt": job.text, "normalized_prompt": plain, "seed": job.seed, **shared}
        if avoided:
            facts["normalized_negative_prompt"] = avoided_heard[0]
        if as_is:
            facts["as_is"] = True
        if warnings := [*unheard[i], *chain.from_iterable(unheard[len(heard) :])]:
            facts["warnings"] = warnings
        orders.append((job.name or f"{i:03d}-{slug(job.text)}-seed{job.seed}", facts))
    check_folder(folder)
    say(f"{len(wanted)} clips of {seconds:g} s from {sampler.checkpoint} into {folder}")
    if seconds > trained:
        say(
            f"longer than the {trained:g} s that the model was trained on: sampled in windows of "
            f"that length, each beginning with the last {OVERLAP:.0%} of the window before"
        )
    made: dict[int, dict[str, Any]] = {}
    for i, (stem, facts) in enumerate(orders):
        path, exists = find_place(folder, stem, facts, kind)
        if exists:
            made[i] = facts | {kind: str(path)}
    if made:
        say(f"{len(made)} of them exist with the same settings and are kept")
    # Batches are those of the whole order, so a rerun makes the same clips as a whole run.
    everything, size = range(len(wanted)), sampling.batch_size
    batches = [everything[start : start + size] for start in everything[::size]]
    batches = [rows for rows in batches if any(i not in made for i in rows)]
    total = sum(len(rows) for rows in batches) * seconds
    began = time.monotonic()
    for number, rows in enumerate(batches):
        part = slice(rows.start, rows.stop)
        report = partial(_report, began, total, number, len(batches))
        waves, _ = sampler.generate(
            texts[part],
            seconds,
            seeds[part],
            sampling,
            report,
            continue_from=beginning,
            as_is=as_is,
        )
        for i, wave in zip(rows, waves, strict=True):
            if i in made:
                continue
            if sampling.loudness is not None:
                wave = at_loudness(wave, rate, sampling.loudness)
            stem, facts = orders[i]
            # Looked up again, because another clip may have taken the name meanwhile.
            path, _ = find_place(folder, stem, facts, kind)
            made[i] = write_clip(folder, path.stem, wave, facts, kind)
    if batches:
        spent = time.monotonic() - began
        say(f"{total:g} s of sound in {spent:.1f} s: {total / spent:.2f}x real time")
    in_order = [made[i] for i in range(len(orders))]
    if as_json:
        print_json(in_order)
    else:
        print(*(facts[kind] for facts in in_order), sep="\n")


def play(
    config: ConfigOption,
    overrides: OverridesArgument = None,
    run: Annotated[list[str] | None, Option(help="Training run; repeat it to compare.")] = None,
    host: HostOption = "127.0.0.1",
    port: Annotated[int, Option(min=1, max=65535)] = 8400,
    device: DeviceOption = "auto",
) -> None:
    """Serve a local page, without a login: type prompts, hear clips, compare two checkpoints."""
    from training.config import LMConfig
    from training.sampling.config import SamplingConfig
    from training.sampling.sampler import Sampler
    from training.web.play import Studio, build_app
    from training.web.serving import host_names, serve

    recipe = load_recipe(config, overrides or [])
    device = choose_device(device)
    names = run or [recipe.section("lm", LMConfig).run]
    samplers = {name: Sampler.load(recipe, Path(recipe.run_dir) / name, device) for name in names}
    studio = Studio(samplers, recipe.section("sampling", SamplingConfig))
    # Other machines use names for this one that are not known here.
    hosts = ["*"] if host in ("0.0.0.0", "::") else host_names(host)
    serve(build_app(studio, hosts), host, port, ", ".join(names))


def _wanted(given: list[str], file: Path | None, n: int, seed: int) -> list[Prompt]:
    """One entry per clip, with its seed and its own name."""
    prompts = [Prompt(text) for text in given] + (read_prompts(file) if file else [])
    if not prompts:
        raise AttuneError("nothing to generate: give --prompt TEXT or --prompts FILE")
    jobs = []
    for one in prompts:
        first = seed if one.seed is None else one.seed
        for i in range(n):
            name = f"{one.name}-{i}" if one.name and n > 1 else one.name
            jobs.append(Prompt(one.text, first + i, name, one.source))
    names = Counter(job.name for job in jobs if job.name)
    if twice := [name for name, count in names.items() if count > 1]:
        raise AttuneError(f"prompts {file}: name {twice[0]!r} is used twice")
    return jobs


def _report(began: float, seconds: float, before: int, batches: int, step: int, steps: int) -> None:
    """Progress on a terminal: `before` of `batches` are done, and `step` of `steps` of the next."""
    if sys.stderr.isatty():
        done, total = before * steps + step, batches * steps
        spent = time.monotonic() - began
        speed = seconds * done / total / max(spent, 1e-9)
        left = spent / done * (total - done)
        end = "\n" if done == total else "\r"
        line = f"step {done}/{total}  {speed:.2f}x real time  {left:.0f} s left  "
        print(line, end=end, file=sys.stderr, flush=True)
