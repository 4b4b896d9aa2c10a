"""Train EnCodec from scratch: `python -m training codec`.

Reads top to bottom: processes, audio, model, loop, the finished folder.  Every random choice is a
function of (seed, step, place in the global batch), so a killed run goes on exactly where it
stopped, and under torchrun the global batches stay the same whatever the number of processes.  What
a step does is in `step.py`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from common.allocator import keep_freed_memory
from common.bfloat16 import has_bfloat16
from common.codec import codec_identity, exact_float32
from common.config import Recipe
from common.errors import AttuneError
from training.codec.config import CodecTrainingConfig
from training.codec.data import Clips, ClipsInMemory, ClipsOnDisk, SegmentLoader, held_out_clips
from training.codec.losses import MultiScaleMelLoss, shortest_input
from training.codec.preflight import preflight
from training.codec.quantizer import ResidualQuantizerTrainer, usage
from training.codec.run_files import (
    EXECUTION_ONLY,
    CodecLog,
    check_free,
    claim,
    finished,
    recorded,
    run_folder,
    save_codec,
)
from training.codec.sources import audio_sources
from training.codec.state import (
    CHECKPOINT,
    CodecState,
    check_alike,
    load_checkpoint,
    save_checkpoint,
)
from training.codec.step import CodecStep, Outcome
from training.codec.validation import Validation, validate
from training.distributed import World, on_first, start, sum_on_host, wait_patiently
from training.run.precision import settle
from training.run.signals import StopSignals


def train_codec(
    recipe: Recipe,
    config: CodecTrainingConfig,
    console: Console,
    stop: StopSignals | None = None,
    *,
    fresh: bool = False,
    dry_run: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """Train, or go on training, the codec of a recipe.

    Args:
        stop: signals that end the run early, with a checkpoint.
        fresh: delete what an unfinished run has so far and start over.
        dry_run: hears what the run would take (`preflight`); nothing else is done then.

    Returns:
        The folder of the finished codec: config.json, model.safetensors, README.md (model card),
        report.html.

    Raises:
        AttuneError: unusable audio, a folder that holds something else or cannot be written, a run
            folder made with another configuration, losses that are not finite, or a collapsed
            codebook.
        Stopped: a signal came.
    """
    # 1. Where it goes, and on which processes.
    out = Path(config.out)
    run = run_folder(out)
    world = start(config.threads)
    if config.batch_size % world.size:
        raise AttuneError(
            f"codec_training.batch_size {config.batch_size} cannot be shared by {world.size} "
            "processes"
        )
    before, automatic = recorded(run, world, fresh), _automatic(config)
    config = _settle(config, before, world)
    settings = _settings(recipe, config)
    exact_float32(world.device)
    if not world.is_first:
        console = Console(quiet=True)
    done_before = finished(out, run, settings, fresh)
    if done_before and not dry_run:
        console.print(f"codec in {out} is finished; kept ({codec_identity(str(out))})")
        return out
    if not done_before:
        on_first(lambda: check_free(out, run), world)
    segment = _segment_samples(recipe, config)
    if world.device.type == "cpu":
        keep_freed_memory()

    # 2. Which audio; codec and discriminator.
    on_disk, whole = _find_audio(recipe, config)
    state = CodecState(config, recipe.sample_rate, recipe.seed, world.device)
    model = state.model
    quantizer = ResidualQuantizerTrainer(
        model.quantizer, config.codebook_decay, config.dead_code_threshold, world
    )
    mel_loss = MultiScaleMelLoss(recipe.sample_rate, config.mel_windows, config.losses.mel_squared)
    mel_loss.to(world.device)
    step_fn = CodecStep(state, quantizer, mel_loss, config, recipe.seed)
    # Before the configuration is kept: the remedy is another one, which `auto` may take.
    wrong = step_fn.check_precision(() if before else automatic)
    for key in automatic:
        if sum_on_host([key in wrong], world) != [0]:
            told = f"codec_training.{key} auto: fp32, bf16 is wrong for this codec on a processor"
            console.print(told, soft_wrap=True)
            config = _with_precision(config, key, "fp32")
    step_fn.config, settings = config, _settings(recipe, config)
    kinds = {config.precision, config.discriminator.precision if state.discriminator else "fp32"}
    if "bf16" in kinds and not has_bfloat16(world.device):
        console.print(
            "this processor emulates bf16, which is slow: set codec_training.precision=fp32 and "
            "codec_training.discriminator.precision=fp32 (of a new run)",
            style="yellow",
            soft_wrap=True,
        )
    if dry_run:
        if world.is_first:
            dry_run(preflight(state, on_disk, whole, config, world, run, done_before))
        wait_patiently(world)
        return out

    # 3. Audio, and where the run stopped.
    clips, held_out = _open_audio(on_disk, whole, recipe, config, world, console)
    loader = SegmentLoader(
        clips, segment, config.batch_size, recipe.seed,
        world.rank, world.size, config.workers, config.prefetch,
    )  # fmt: skip
    on_first(lambda: claim(run, settings, fresh), world)  # all wait for the first
    done = load_checkpoint(run, state)
    judge = _size(state.discriminator) if state.discriminator else "no"
    console.print(
        f"codec: {_size(model)} parameters, {judge} discriminator, {config.steps} steps on "
        f"{world.size} x {world.device.type} ({config.precision}) -> {out}"
        + (f"; going on at step {done}" if done else ""),
        soft_wrap=True,
    )

    # 4. The loop.
    if stop:
        stop.watch()
    else:
        stop = StopSignals()  # hears nothing
    log = CodecLog(run, done) if world.is_first else None
    pace = _Pace(config, done)
    model.train()
    for step, batch in enumerate(loader.batches(done, config.steps), start=done):
        rate = learning_rate(config, step)
        outcome = step_fn(batch.to(world.device), step, rate)
        reached = step + 1
        uses = outcome.quantized.uses if outcome.quantized else None
        warnings, window = state.guards.observe(reached, uses, outcome.losses)
        for line in warnings:
            console.print(line, style="yellow", soft_wrap=True)
        row: dict[str, Any] = dict(window)
        last = reached == config.steps
        if reached % config.log_every == 0 or last:
            row |= _row(outcome, config, rate) | {"audio_s_per_s": pace.speed(reached)}
            if loader.refused:
                row["refused"] = loader.refused.total()
            told = _line(row, outcome, config, pace, reached)
            console.print(told, highlight=False, soft_wrap=True)
        if log and row:
            log.write({"step": reached, **row})
        if config.valid_every and reached % config.valid_every == 0 and not last:
            found = _validate(state, mel_loss, held_out, world, config)
            told = f"step {reached}: {json.dumps(found.figures)}"
            console.print(told, highlight=False, soft_wrap=True)
            if log:
                log.write_validation(reached, found, recipe.sample_rate)
        (asked,) = sum_on_host([stop.asked], world)
        if (reached % config.checkpoint_every == 0 or asked) and not last:
            check_alike(state, world, reached)
            save = partial(save_checkpoint, run, state, reached)
            on_first(save, world)  # what goes wrong there ends all
            if asked:
                raise stop.stopped(reached, run / CHECKPOINT, world.is_first)

    # 5. Validation on whole clips, and the finished folder.
    check_alike(state, world, config.steps)
    found = _validate(state, mel_loss, held_out, world, config)
    if log:
        log.write_validation(config.steps, found, recipe.sample_rate)
        log.close()
    with state.average.applied():
        facts = _facts(clips, loader)
        save = partial(save_codec, out, run, model, recipe, config, settings, facts, found)
        on_first(save, world)
    console.print(f"codec: finished, {json.dumps(found.figures)}", highlight=False, soft_wrap=True)
    return out


def _settings(recipe: Recipe, config: CodecTrainingConfig) -> dict[str, Any]:
    """What decides what is learnt."""
    plain = config.model_dump(exclude=EXECUTION_ONLY)
    return {"sample_rate": recipe.sample_rate, "seed": recipe.seed, **plain}


_PRECISIONS = ("precision", "discriminator.precision")


def _automatic(config: CodecTrainingConfig) -> list[str]:
    """Which precisions are `auto`."""
    return [key for key in _PRECISIONS if attrgetter(key)(config) == "auto"]


def _with_precision(config: CodecTrainingConfig, key: str, precision: str) -> CodecTrainingConfig:
    if key == "precision":
        return config.model_copy(update={"precision": precision})
    judge = config.discriminator.model_copy(update={"precision": precision})
    return config.model_copy(update={"discriminator": judge})


def _settle(
    config: CodecTrainingConfig, before: dict[str, Any], world: World
) -> CodecTrainingConfig:
    """`auto` replaced by what it stands for: `before`, if the run has begun."""
    judge = before.get("discriminator")
    judge = judge if isinstance(judge, dict) else {}
    begun = (before.get("precision"), judge.get("precision"))
    for key, recorded_as in zip(_PRECISIONS, begun, strict=True):
        precision = settle(attrgetter(key)(config), recorded_as, world)
        config = _with_precision(config, key, precision)
    return config


def learning_rate(config: CodecTrainingConfig, step: int) -> float:
    """Linear warm-up, then a cosine down to `final_learning_rate`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    low = config.final_learning_rate
    return low + (config.learning_rate - low) * cosine


def _segment_samples(recipe: Recipe, config: CodecTrainingConfig) -> int:
    segment = round(config.segment_s * recipe.sample_rate)
    shortest = shortest_input(config.mel_windows)
    if segment < shortest and config.losses.mel > 0:
        raise AttuneError(
            f"codec_training.segment_s {config.segment_s:g} is {segment} samples, and the mel "
            f"loss's windows (mel_windows) take at least {shortest}; lengthen segments or drop "
            "windows"
        )
    longest = max(config.discriminator.windows) if config.losses.use_discriminator else 0
    if segment < longest:
        raise AttuneError(
            f"codec_training.segment_s {config.segment_s:g} is {segment} samples, and the "
            f"discriminator's windows take up to {longest}; lengthen segments or drop windows"
        )
    return segment


def _find_audio(recipe: Recipe, config: CodecTrainingConfig) -> tuple[ClipsOnDisk, ClipsOnDisk]:
    """What is there to be trained on, and to be held out."""
    try:
        train = audio_sources(config.audio, "train")
        valid = audio_sources(config.validation, "valid")
    except AttuneError as error:
        if recipe.root or "root" not in recipe.model_fields_set:
            raise
        raise AttuneError(
            f"{error}; the recipe's root is empty: give a path (root=/path on the command line) or "
            "set the variable that the recipe takes it from"
        ) from error
    return ClipsOnDisk(train, recipe.sample_rate), ClipsOnDisk(valid, recipe.sample_rate)


def _open_audio(
    on_disk: ClipsOnDisk,
    whole: ClipsOnDisk,
    recipe: Recipe,
    config: CodecTrainingConfig,
    world: World,
    console: Console,
) -> tuple[Clips, ClipsInMemory]:
    """What is trained on, and this process's part of what is held out."""
    rate = recipe.sample_rate
    clips: ClipsOnDisk | ClipsInMemory = on_disk
    told = f"{len(on_disk)} clips, read as they are drawn"
    if config.reading == "memory":
        clips = ClipsInMemory(on_disk, config.workers)
        told = f"{len(clips)} clips ({clips.seconds(rate) / 60:.1f} min) in memory"
        if clips.refused:
            told += f", refused {dict(clips.refused)}"
        if not len(clips):
            raise AttuneError(
                f"codec training: no usable audio in {', '.join(config.audio)}: refused "
                f"{dict(clips.refused)}"
            )
    held_out = held_out_clips(
        whole, config.valid_clips, config.valid_max_s, config.workers, world.rank, world.size,
        shortest_input(config.mel_windows),
    )  # fmt: skip
    (count,) = sum_on_host([len(held_out)], world)
    if not count:
        raise AttuneError(
            f"codec training: no usable audio in {', '.join(config.validation)}: refused "
            f"{dict(held_out.refused)}"
        )
    told += f"; {count} of {len(whole)} held out for validation"
    console.print(f"codec: {told}", highlight=False, soft_wrap=True)
    return clips, held_out


def _validate(
    state: CodecState,
    mel_loss: MultiScaleMelLoss,
    held_out: ClipsInMemory,
    world: World,
    config: CodecTrainingConfig,
) -> Validation:
    with state.average.applied():
        return validate(state.model, mel_loss, held_out, world, config.examples)


class _Pace:
    """Seconds of audio per second since this start."""

    def __init__(self, config: CodecTrainingConfig, done: int) -> None:
        self._audio = config.batch_size * config.segment_s
        self._done, self._steps = done, config.steps
        self._began = time.monotonic()

    def speed(self, reached: int) -> float:
        spent = time.monotonic() - self._began
        return round((reached - self._done) * self._audio / max(spent, 1e-9), 2)

    def minutes_left(self, reached: int) -> float:
        return (self._steps - reached) * self._audio / max(self.speed(reached), 1e-9) / 60


def _row(outcome: Outcome, config: CodecTrainingConfig, rate: float) -> dict[str, Any]:
    row: dict[str, Any] = outcome.row(config) | {"lr": rate}
    if outcome.quantized is not None:
        uses = outcome.quantized.uses
        assert uses is not None
        row["used"], row["perplexity"] = usage(uses)
    return row


def _line(
    row: dict[str, Any], outcome: Outcome, config: CodecTrainingConfig, pace: _Pace, reached: int
) -> str:
    parts = " ".join(f"{name} {row[name]:.4f}" for name in outcome.losses)
    perplexity = "/".join(f"{value:.0f}" for value in row.get("perplexity", [])) or "-"
    return (
        f"step {reached}/{config.steps} loss {row['loss']:.4f} {parts} perplexity {perplexity} "
        f"grad {row['grad_norm']:.2f} {row['audio_s_per_s']:.1f}x real time "
        f"eta {pace.minutes_left(reached):.0f} min"
    )


def _facts(clips: Clips, loader: SegmentLoader) -> str:
    """What the model card says of the data."""
    refused = clips.refused if isinstance(clips, ClipsInMemory) else loader.refused
    return f"{len(clips)} clips; refused: {dict(refused) or 'none'}"


def _size(model: nn.Module) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M"
