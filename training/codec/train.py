"""Train EnCodec from scratch: `python -m training codec`.

In reading order: processes, audio and models, training loop, the finished folder.  Random choices
depend only on (seed, step, place in the global batch).  So a killed run resumes exactly, and under
torchrun the global batches do not depend on the number of processes.  `step.py` has a single step.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from common.allocator import keep_freed_memory
from common.bfloat16 import has_bfloat16
from common.codec import codec_identity, exact_float32
from common.config import Recipe
from common.errors import AttuneError
from training.checkpoint.save import Checkpointer
from training.codec.config import CodecTrainingConfig
from training.codec.data import Clips, ClipsInMemory, ClipsOnDisk, SegmentLoader, held_out_clips
from training.codec.finished import check_free, finished, run_folder, save_codec
from training.codec.log import CodecLog
from training.codec.losses import MultiScaleMelLoss, shortest_input
from training.codec.preflight import preflight, preflight_lines, size
from training.codec.quantizer import ResidualQuantizerTrainer
from training.codec.sources import audio_sources
from training.codec.state import CodecState, check_alike
from training.codec.step import CodecStep
from training.codec.validation import Validation, validate
from training.distributed import (
    World,
    check_divisible,
    on_all,
    on_first,
    start,
    sum_on_host,
    wait_patiently,
)
from training.optim import learning_rate
from training.run.folder import as_recorded, claim, recorded_precision
from training.run.precision import settle
from training.run.signals import StopSignals

KEEP = 2
"""Number of newest checkpoints kept.  The older one is used if the newer one is damaged."""
FINAL_RATE = 0.01
"""Learning rate at the end of the cosine, as a share of the peak."""


def train_codec(
    recipe: Recipe,
    *,
    fresh: bool = False,
    dry_run: Callable[[dict[str, Any], list[str]], None] | None = None,
    stop: StopSignals | None = None,
) -> Path:
    """Train the codec of a recipe, or resume its training.

    Args:
        recipe: with a `codec_training` section.
        fresh: delete the files of an unfinished run and start from scratch.
        dry_run: is called with what the run would take, as a dict and as lines of text; if given,
            nothing is trained.
        stop: signals that end the run early, with a checkpoint.

    Returns:
        The folder of the finished codec: config.json, model.safetensors, README.md (model card),
        report.html.

    Raises:
        AttuneError: no usable audio; `codec_training.out` holds something other than this codec;
            a folder cannot be written; the run was started with another configuration; losses are
            not finite; a codebook has collapsed; or a checkpoint cannot be loaded or saved.
        Stopped: a signal came; the checkpoint is saved.
    """
    # 1. Recipe, places, processes
    config = recipe.section("codec_training", CodecTrainingConfig)
    out = Path(config.out)
    run = run_folder(out)
    world = start(config.threads)
    check_divisible(config.batch_size, world.size, "codec_training.batch_size")
    before = recorded_precision(run, world, fresh, "codec_training")
    may_change = config.precision == "auto" and not before
    precision = settle(config.precision, before, world)
    config = config.model_copy(update={"precision": precision})
    exact_float32(world.device)
    done_before = finished(out, run, _started(recipe, config), fresh)
    if done_before and not dry_run:
        if world.is_first:
            identity = codec_identity(str(out))
            print(f"codec in {out} is finished and not trained again ({identity})", flush=True)
        return out
    if not done_before:
        on_first(lambda: check_free(out, run), world)
    segment = _segment_samples(config, recipe.sample_rate)
    if world.device.type == "cpu":
        keep_freed_memory()

    # 2. Audio, codec and discriminator
    on_disk, whole = _find_audio(recipe, config)
    state = CodecState(config, recipe.sample_rate, recipe.seed, world.device)
    model = state.model
    quantizer = ResidualQuantizerTrainer(model.quantizer, world=world)
    mel_loss = MultiScaleMelLoss(recipe.sample_rate).to(world.device)
    step_fn = CodecStep(state, quantizer, mel_loss, config, recipe.seed)
    # Check bf16 before config.json records the precision.  If bf16 is wrong, a new run with
    # precision=auto takes fp32, and any other run ends.
    try:
        on_all(step_fn.check_precision, world)
    except AttuneError as error:
        if not may_change:
            raise
        if world.is_first:
            chosen = "warning: codec_training.precision=auto takes fp32"
            print(f"{chosen}, because {error}", file=sys.stderr)
        config = step_fn.config = config.model_copy(update={"precision": "fp32"})
    if config.precision == "bf16" and not has_bfloat16(world.device) and world.is_first:
        print(
            "warning: this processor emulates bf16, which is slow: set "
            "codec_training.precision=fp32 and start a new run",
            file=sys.stderr,
        )
    if dry_run:
        if world.is_first:
            facts = preflight(state, on_disk, whole, config, run) | {
                "processes": world.size, "device": world.device.type, "finished": done_before,
            }  # fmt: skip
            dry_run(facts, preflight_lines(facts))
        wait_patiently(world)
        return out
    clips, held_out = _open_audio(on_disk, whole, config, world)
    loader = SegmentLoader(clips, segment, config.batch_size, recipe.seed, world.rank, world.size)

    # 3. Resume where the run stopped
    checkpointer = Checkpointer(run, world, state, KEEP)
    started = _started(recipe, config)
    done = checkpointer.resume(claim(run, started, world, fresh, "codec_training.out"))
    if world.is_first:
        print(
            f"codec: {size(model) / 1e6:.2f}M parameters, "
            f"{size(state.discriminator) / 1e6:.2f}M of the discriminator, {config.steps} steps on "
            f"{world.size} x {world.device.type} ({config.precision}) -> {out}"
            + (f"; resuming at step {done}" if done else ""),
            flush=True,
        )

    # 4. Train
    if stop:
        stop.watch()
    else:
        stop = StopSignals()  # without `watch` it reports no signal
    log = CodecLog(run, done, config.steps) if world.is_first else None
    began, audio_s = time.monotonic(), config.batch_size * config.segment_s
    found: Validation | None = None
    model.train()
    for step, batch in enumerate(loader.batches(done, config.steps), start=done):
        peak = config.learning_rate
        rate = learning_rate(step, config.steps, peak, config.warmup_steps, FINAL_RATE * peak)
        outcome = step_fn(batch.to(world.device), step, rate)
        reached = step + 1
        last = reached == config.steps
        uses = outcome.quantized.uses if outcome.quantized else None
        warnings, window = state.guards.observe(reached, uses, outcome.losses)
        row: dict[str, Any] = dict(window)
        regular = reached % config.log_every == 0 or last
        if regular:
            spent = time.monotonic() - began
            row |= outcome.row(rate) | {"elapsed_s": round(spent, 3)}
            row["audio_s_per_s"] = round((reached - done) * audio_s / max(spent, 1e-9), 2)
            if loader.refused:
                row["refused"] = loader.refused.total()
        if log:
            for line in warnings:
                print(line, flush=True)
            if row:
                log.log({"step": reached, **row}, say=regular)
        if (config.valid_every and reached % config.valid_every == 0) or last:
            with state.average.applied():
                found = validate(model, mel_loss, held_out, world)
            if log:
                log.log_validation(reached, found, recipe.sample_rate)
        (asked,) = sum_on_host([stop.asked], world)
        if reached % config.checkpoint_every == 0 or last or asked:
            check_alike(state, world, reached)
            folder = checkpointer.save(reached, {"recipe": recipe.name})
            if asked and not last:
                raise stop.stopped(reached, folder, world.is_first)
    if log:
        log.close()

    # 5. The finished folder: the average of the weights
    refused = clips.refused if isinstance(clips, ClipsInMemory) else loader.refused
    data = f"{len(clips)} clips; refused: {dict(refused) or 'none'}"
    with state.average.applied():
        found = found or validate(model, mel_loss, held_out, world)
        on_first(partial(save_codec, out, run, model, recipe, config, data, found), world)
    if world.is_first:
        print(f"done: {out}", flush=True)
    return out


def _started(recipe: Recipe, config: CodecTrainingConfig) -> dict[str, Any]:
    """Content of `config.json`."""
    return {
        "codec_training": config.model_dump(mode="json"),
        "sample_rate": recipe.sample_rate,
        "seed": recipe.seed,
        "recipe": as_recorded(recipe),
    }


def _segment_samples(config: CodecTrainingConfig, sample_rate: int) -> int:
    segment = round(config.segment_s * sample_rate)
    longest = max(config.discriminator.windows)
    for what, least in (("mel loss", shortest_input()), ("discriminator", longest)):
        if segment < least:
            raise AttuneError(
                f"codec_training.segment_s {config.segment_s:g} is {segment} samples, but the "
                f"{what}'s largest window needs at least {least}; use longer segments"
            )
    return segment


def _find_audio(recipe: Recipe, config: CodecTrainingConfig) -> tuple[ClipsOnDisk, ClipsOnDisk]:
    """Clips for training and for validation; nothing is decoded yet."""
    try:
        train = audio_sources(config.audio, "train")
        valid = audio_sources(config.validation, "valid")
    except AttuneError as error:
        if recipe.root or "root" not in recipe.model_fields_set:
            raise
        raise AttuneError(
            f"{error}; the recipe's root is empty: add root=/path to the command, or set the "
            "environment variable that the recipe takes it from"
        ) from error
    return ClipsOnDisk(train, recipe.sample_rate), ClipsOnDisk(valid, recipe.sample_rate)


def _open_audio(
    on_disk: ClipsOnDisk, whole: ClipsOnDisk, config: CodecTrainingConfig, world: World
) -> tuple[Clips, ClipsInMemory]:
    """Clips for training, and this process's part of the clips for validation."""
    clips: Clips = on_disk
    amount = f"{len(on_disk)} clips, decoded when they are drawn"
    if config.reading == "memory":
        clips = ClipsInMemory(on_disk)
        minutes = sum(map(len, clips.waves)) / on_disk.sample_rate / 60
        amount = f"{len(clips)} clips ({minutes:.1f} min) in memory"
        if clips.refused:
            amount += f", refused {dict(clips.refused)}"
        _check_any(len(clips), config.audio, clips)
    held_out = held_out_clips(whole, world.rank, world.size, shortest_input())
    (count,) = sum_on_host([len(held_out)], world)
    _check_any(count, config.validation, held_out)
    if world.is_first:
        print(f"codec: {amount}; {count} of {len(whole)} held out for validation", flush=True)
    return clips, held_out


def _check_any(count: int, entries: Sequence[str], clips: ClipsInMemory) -> None:
    if not count:
        raise AttuneError(
            f"codec training: no usable audio in {', '.join(entries)}: refused "
            f"{dict(clips.refused)}"
        )
