"""Language-model training, top to bottom: set up, resume, step, log, save.

A step draws which clips train without text (`lm.cfg`; by default all clips of the global batch or
none).  It runs the model and computes the cross-entropy per stream.  By default, clips without text
also get the representation regularization (equation 6).  At its end, the step updates the weights
(AdamW) and the EMA.  The same code runs in one process and under torchrun.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.fsdp import FSDPModule
from torch.profiler import record_function

from common.allocator import keep_freed_memory
from common.config import Recipe
from common.errors import AttuneError
from common.prompts import PROMPT_FORM, recorded_form
from common.shards import ShardDataset
from training.checkpoint.init_from import begin_with
from training.checkpoint.save import Checkpointer, ModelState
from training.config import LMConfig
from training.data import ClipOrder, Loader, check_shards
from training.distributed import (
    World,
    be_deterministic_if_asked,
    check_divisible,
    full,
    on_all,
    parallelize,
    shard_group,
    start,
    sum_on_host,
    sum_over_processes,
    wait_patiently,
)
from training.ema import ExponentialMovingAverage
from training.finite import FiniteUpdates
from training.lm.losses import stream_losses
from training.lm.model import Architecture, LanguageModel
from training.optim import (
    build_optimizer,
    fill_missing_gradients,
    learning_rate,
    set_learning_rate,
)
from training.preflight import check_memory, flops_per_clip, preflight, preflight_lines
from training.run.folder import (
    as_recorded,
    candidates,
    claim,
    latest_checkpoint,
    recorded_precision,
)
from training.run.log import Meter, Progress
from training.run.precision import settle
from training.run.profiling import StepProfiler
from training.run.signals import StopSignals
from training.sampling.sampler import check_prompts
from training.sampling.samples import write_samples
from training.step import TrainingStep, forward, micro_batches

VALID_BATCHES = 8
"""Largest number of global batches in a validation."""
CONTRASTIVE_WIDTH = 512
"""Width of the space in which the contrastive loss compares clips and prompts, as in CLAP."""


def train(
    recipe: Recipe,
    *,
    fresh: bool = False,
    dry_run: Callable[[dict[str, Any], list[str]], None] | None = None,
    stop: StopSignals | None = None,
    profile: Path | None = None,
) -> Path:
    """Train the language model of a recipe, or resume its training.

    Args:
        recipe: with an `lm` section and finished shards in `data_dir`.
        fresh: delete the files of this run and start from scratch.
        dry_run: is called with what the run would take, as a dict and as lines of text; if given,
            nothing is trained.
        stop: signals that end the run early, with a checkpoint.
        profile: file for a trace of a few steps of the first process.

    Returns:
        The run's folder.

    Raises:
        AttuneError: the shards do not match the recipe; the run was started with another config;
            loss or gradient is not finite; or a checkpoint cannot be loaded or saved.
        Stopped: a signal came; the checkpoint is saved.
    """
    # 1. Recipe, shards, processes
    config = recipe.section("lm", LMConfig)
    dataset = ShardDataset.open(recipe.data_dir)
    check_shards(recipe, dataset.summary)
    world = start(config.threads)
    be_deterministic_if_asked()
    if world.device.type == "cpu":
        keep_freed_memory()
    check_divisible(config.batch_size, world.size, "lm.batch_size")
    if config.rr.weight > 0 and config.rr.scope == "local" and config.batch_size < 2 * world.size:
        raise AttuneError(
            f"lm.rr.scope=local compares clips only inside each process, but lm.batch_size="
            f"{config.batch_size} gives each of {world.size} processes 1 clip; raise lm.batch_size "
            f"to {2 * world.size} or more, or set lm.rr.scope=global"
        )
    run = Path(recipe.run_dir) / config.run
    precision = settle(config.precision, recorded_precision(run, world, fresh), world)
    config = config.model_copy(update={"precision": precision})
    if config.precision == "medium":
        torch.set_float32_matmul_precision("medium")
    if config.samples:
        check_prompts(config.samples, recorded_form(dataset.summary))
    load = partial(
        Loader, dataset, segment_s=config.segment_s, seed=recipe.seed,
        batch_size=config.batch_size, rank=world.rank, world=world.size,
        pin=world.device.type == "cuda", skip_bad=config.bad_samples == "skip",
    )  # fmt: skip
    order = ClipOrder(dataset, "train", recipe.seed, weights=config.datasets)
    loader = load(order)
    held_out = ClipOrder(dataset, "valid", recipe.seed) if config.valid_every else None
    arch = architecture(config, dataset.summary)
    frames = min(loader.segment_frames, order.longest)
    tokens = recipe.text_encoder.max_length
    estimate = preflight(arch, config, world, order.epoch_size, frames, tokens)
    fits = partial(check_memory, estimate["memory_bytes"], estimate["available_bytes"])
    if dry_run:
        if world.is_first:
            dry_run(estimate, preflight_lines(estimate))
            fits()
        return run
    on_all(fits, world)
    profiler = StepProfiler(profile if world.is_first else None, world.device)

    # 2. Model, optimizer, average
    model = LanguageModel(arch, config.model.attention)
    model.initialize(recipe.seed)
    if config.init_from and (fresh or not candidates(run)):
        begin_with(model, Path(config.init_from), dataset.summary, world)
    model.to(world.device)
    group = shard_group(config.sharding, world.size)
    parallelize(model, world, precision, group, config.compile, config.activation_checkpointing)
    optimizer = build_optimizer(model, config.optim)
    ema = ExponentialMovingAverage(model, config.ema_decay)

    # 3. Resume where the run stopped
    content = ModelState(model, optimizer, ema)
    checkpointer = Checkpointer(run, world, content, config.keep, config.async_checkpoint)
    trained_s = min(config.segment_s, order.longest / dataset.summary["frame_rate"])
    description = describe(arch, dataset.summary, config.segment_s, trained_s)
    description |= {"recipe": recipe.name, "run": config.run}
    started = {
        "lm": config.model_dump(mode="json"),
        "seed": recipe.seed,
        "model": description,
        "plan_hash": dataset.summary.get("plan_hash"),
        "recipe": as_recorded(recipe),
    }
    done = checkpointer.resume(claim(run, started, world, fresh))
    if world.is_first:
        _announce(run, config, preflight_lines(estimate), world, done)
    if done >= config.steps:
        return run

    # 4. Train
    step_fn = TrainingStep(model, config, world, recipe.seed)
    progress = Progress(run, done, config.steps, config.wandb) if world.is_first else None
    updates = FiniteUpdates(optimizer, ema, config.skip_non_finite, world, run, progress, done)
    if stop:
        stop.watch()
    else:
        stop = StopSignals()  # without `watch` it reports no signal
    meter = Meter(estimate["matmul_flops"], world.device)
    batches = meter.waiting(loader.batches(done, config.steps))
    for step, batch in enumerate(batches, start=done):
        profiler.step()
        rate = learning_rate(step, config.steps, config.optim.lr, config.optim.warmup)
        set_learning_rate(optimizer, rate)
        with record_function("attune: forward and backward"):
            outcome = step_fn(batch.to(world.device), step)
            fill_missing_gradients(model)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip)
        finished = step + 1
        last = finished == config.steps
        regular = finished % config.log_every == 0 or last
        # Exchange the stop flags before deciding whether to save: all stop after the same step.
        asked, replaced = sum_on_host([stop.asked, batch.replaced], world)
        logged = regular or bool(replaced) or (outcome.rr is not None and config.rr.apply == "cfg")
        saved = finished % config.checkpoint_every == 0 or last or bool(asked)
        now = logged or saved
        with record_function("attune: update"):
            taken = updates.apply(finished, norm, outcome.loss, batch.sample_ids, now)
            model.keep_bounds()
            optimizer.zero_grad(set_to_none=True)

        meter.add(
            int(batch.lengths.sum()) * arch.n_codebooks * world.size,
            len(batch.lengths) * flops_per_clip(arch, batch.codes.shape[-1], batch.text.shape[1]),
        )
        if logged and taken:
            row = {"step": finished, **outcome.row(world)}
            row |= {"grad_norm": float(full(norm)), "lr": optimizer.param_groups[0]["lr"]}
            row |= meter.row()
            if replaced:
                row["bad_samples"] = replaced
            if progress:
                progress.log(row, say=regular)
        with meter.aside():
            valid_loss = None
            if held_out and finished % config.valid_every == 0:
                with ema.applied():
                    clips = min(held_out.epoch_size, VALID_BATCHES * config.batch_size)
                    row = validate(
                        model, load(held_out), config.batch_size, clips, config.micro_batch,
                        precision, world,
                    )  # fmt: skip
                valid_loss = row["valid_loss"]
                if progress:
                    progress.log({"step": finished, **row})
            if saved:
                folder = checkpointer.save(finished, description, valid_loss)
                if asked and not last:
                    checkpointer.wait()
                    profiler.close()
                    raise stop.stopped(finished, folder, world.is_first)
                if config.samples:
                    checkpointer.wait()
                    if progress:
                        board = progress.board
                        write_samples(recipe, run, config.samples, board, finished, world.device)
                    wait_patiently(world)
        checkpointer.check()
        if regular:
            meter.restart()
    profiler.close()
    checkpointer.wait()
    if progress:
        progress.close()
        print(f"done: {run} (EMA weights in {latest_checkpoint(run)})", flush=True)
    return run


@torch.no_grad()
def validate(
    model: LanguageModel,
    loader: Loader,
    batch_size: int,
    clips: int,
    micro_batch: int,
    precision: str,
    world: World,
) -> dict[str, float]:
    """Mean cross-entropy on the first clips of an epoch, once with and once without text.

    Args:
        batch_size: clips per batch of the loader, over all processes.
        clips: number of clips; each counts once.
        micro_batch: as in `micro_batches`.
        precision: as in `forward`.
    """
    share = batch_size // world.size
    places = torch.arange(share) + world.rank * share
    row = {}
    for name, drop in (("valid_loss", False), ("valid_loss_uncond", True)):
        dropped = np.full(batch_size, drop)
        total, count = torch.zeros((), device=world.device), 0
        for step, batch in enumerate(loader.batches(0, math.ceil(clips / batch_size))):
            # The last batch may have clips of the next epoch.  With length 0 they do not count.
            new = places + step * batch_size < clips
            batch = replace(batch, lengths=batch.lengths * new).to(world.device)
            for part in micro_batches(batch, micro_batch):
                logits, _, targets = forward(model, part, dropped, precision, world)
                sums, counts = stream_losses(logits, targets)
                total += sum_over_processes(sums.sum(), world)
                count += int(sum_over_processes(counts.sum(), world))
        row[name] = float(total) / count
    if isinstance(model, FSDPModule):
        # Without a backward pass FSDP keeps the root's weights gathered.  Shard them again:
        # otherwise `ema.applied` could not put the trained weights back.
        model.reshard()
    return row


def architecture(config: LMConfig, summary: dict[str, Any]) -> Architecture:
    """The decoder's shape: size from the recipe; streams, codes and text width from the shards."""
    size = config.model
    contrastive = config.rr.loss == "contrastive" and config.rr.weight > 0
    return Architecture(
        d_model=size.d_model,
        n_layers=size.n_layers,
        n_heads=size.n_heads,
        n_codebooks=int(summary["n_codebooks"]),
        codebook_size=int(summary["codebook_size"]),
        text_dim=int(summary["text_dim"]),
        contrastive=CONTRASTIVE_WIDTH if contrastive else 0,
    )


def describe(
    arch: Architecture, summary: dict[str, Any], segment_s: float, trained_s: float
) -> dict[str, Any]:
    """Content of `model.json`: what generation must know about a model.

    Args:
        segment_s: longest allowed clip in seconds.
        trained_s: longest clip of the training data in seconds, at most `segment_s`.
    """
    return {
        "architecture": arch.as_dict(),
        "codec_id": summary["codec_id"],
        "text_encoder_id": summary["text_encoder_id"],
        "prompt_policy": summary.get("prompt_policy", "lemmas"),
        **{name: summary[name] for name in PROMPT_FORM if name in summary},
        "sample_rate": summary["sample_rate"],
        "frame_rate": summary["frame_rate"],
        "segment_s": segment_s,
        "trained_s": trained_s,
    }


def _announce(run: Path, config: LMConfig, estimate: list[str], world: World, done: int) -> None:
    kind = "rr" if config.rr.loss == "similarity" else "contrastive loss"
    rr = f"{kind} {config.rr.weight:g} x {config.rr.pool}-pooled" if config.rr.weight else "no rr"
    print(
        f"{run}: {world.size} x {world.device.type} ({config.precision}), {rr}, text dropped "
        f"{config.cfg.dropout:.0%}",
        *estimate,
        sep="\n",
        flush=True,
    )
    if done:
        what = "nothing to do" if done >= config.steps else "resuming"
        print(f"{done} steps are done: {what}", flush=True)
