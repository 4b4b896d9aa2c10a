"""Language-model training, top to bottom: set up, resume, step, log, save.

Each step is one draw of "with or without text" for the whole global batch (`lm.cfg`), one forward,
cross-entropy per stream, on steps without text the representation regularization on top
(equation 6), one AdamW step, one EMA update.  The same code runs in one process and under torchrun.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from common.allocator import keep_freed_memory
from common.config import Recipe
from common.errors import AttuneError
from common.shards import ShardDataset
from training.checkpoint import Checkpointer, latest_checkpoint
from training.config import LMConfig
from training.data import Batch, ClipOrder, Loader, check_shards, dropped_text
from training.distributed import World, full, gather_rows, shard, start, sum_over_processes
from training.ema import ExponentialMovingAverage
from training.lm.losses import (
    pool,
    representation_regularization,
    similarity_correlation,
    stream_losses,
)
from training.lm.model import Architecture, LanguageModel
from training.lm.patterns import delay, valid_steps
from training.optim import (
    build_optimizer,
    fill_missing_gradients,
    learning_rate,
    set_learning_rate,
)
from training.preflight import Preflight, flops_per_clip, preflight
from training.progress import Meter, Progress
from training.run_folder import claim
from training.samples import write_samples


def train(
    recipe: Recipe,
    *,
    fresh: bool = False,
    dry_run: Callable[[Preflight], None] | None = None,
) -> Path:
    """Train the language model of a recipe, or go on where it stopped.

    Args:
        recipe: with an `lm` section and finished shards in `data_dir`.
        fresh: delete what this run has so far and start over.
        dry_run: hears what the run would take; nothing else is done then.

    Returns:
        The run's folder.

    Raises:
        AttuneError: shards and recipe do not fit, or the run was started with another config.
    """
    # 1. Recipe, shards, processes
    config = recipe.section("lm", LMConfig)
    dataset = ShardDataset.open(recipe.data_dir)
    check_shards(recipe, dataset.summary)
    world = start(config.threads)
    if world.device.type == "cpu":
        keep_freed_memory()
    if config.batch_size % world.size:
        raise AttuneError(
            f"lm.batch_size {config.batch_size} cannot be shared by {world.size} processes"
        )
    if config.rr.weight > 0 and config.rr.scope == "local" and config.batch_size < 2 * world.size:
        raise AttuneError(
            f"lm.rr.scope local compares the clips of each process, but lm.batch_size "
            f"{config.batch_size} gives {world.size} processes {config.batch_size // world.size} "
            "each; raise it, or set lm.rr.scope=global"
        )
    if config.precision == "medium":
        torch.set_float32_matmul_precision("medium")
    order = ClipOrder(dataset, "train", recipe.seed, config.shuffle_window, config.datasets)
    loader = _loader(dataset, order, recipe, config, world)
    held_out = ClipOrder(dataset, "valid", recipe.seed) if config.valid_every else None
    arch = architecture(config, dataset.summary)
    run = Path(recipe.run_dir) / config.run
    frames = min(loader.segment_frames, order.longest)
    tokens = recipe.text_encoder.max_length
    estimate = preflight(arch, config, world, order.epoch_size, frames, tokens)
    if dry_run:
        if world.is_first:
            dry_run(estimate)
        return run
    estimate.check()

    # 2. Model, optimizer, average
    model = LanguageModel(arch, config.model.attention)
    model.initialize(recipe.seed)
    model.to(world.device)
    shard(model, world, config.precision)
    optimizer = build_optimizer(model, config.optim)
    ema = ExponentialMovingAverage(model, config.ema_decay)

    # 3. Go on where the run stopped
    checkpointer = Checkpointer(run, world, model, optimizer, ema, config.keep)
    longest_s = order.longest / dataset.summary["frame_rate"]
    description = describe(recipe, config, arch, dataset.summary, longest_s)
    started = {
        "lm": config.model_dump(mode="json"),
        "seed": recipe.seed,
        "model": description,
        "plan_hash": dataset.summary.get("plan_hash"),
    }
    folder = claim(run, started, world, fresh)
    done = checkpointer.load(folder) if folder else 0
    if world.is_first:
        _announce(run, config, estimate, world, done)
    if done >= config.steps:
        return run

    # 4. Train
    step_fn = TrainingStep(model, config, arch, world, recipe.seed)
    progress = Progress(run, done, config.steps, config.wandb) if world.is_first else None
    meter = Meter(estimate.matmul_flops, world.device)
    batches = meter.waiting(loader.batches(done, config.steps))
    for step, batch in enumerate(batches, start=done):
        set_learning_rate(optimizer, learning_rate(step, config.steps, config.optim))
        outcome = step_fn(batch.to(world.device), step)
        fill_missing_gradients(model)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip)
        finished = step + 1
        last = finished == config.steps
        regular = finished % config.log_every == 0 or last
        logged = regular or (outcome.rr is not None and config.rr.apply == "cfg")
        saved = finished % config.checkpoint_every == 0 or last
        # Before the weights take it in.  A GPU would wait for the answer: there only when somebody
        # needs it; weights that are not finite give a gradient that is not, at the latest then.
        if logged or saved or world.device.type == "cpu":
            _check_finite(finished, "gradient norm", float(full(norm)), run)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update()

        meter.add(
            int(batch.lengths.sum()) * arch.n_codebooks * world.size,
            len(batch.lengths) * flops_per_clip(arch, batch.codes.shape[-1], batch.text.shape[1]),
        )
        if logged:
            row = {"step": finished, **outcome.row(world)}
            row |= {"grad_norm": float(full(norm)), "lr": optimizer.param_groups[0]["lr"]}
            row |= meter.row()
            _check_finite(finished, "loss", row["loss"], run)
            if progress:
                progress.log(row, say=regular)
        with meter.aside():
            if held_out and finished % config.valid_every == 0:
                with ema.applied():
                    row = validate(model, dataset, held_out, recipe, config, world)
                if progress:
                    progress.log({"step": finished, **row})
            if saved:
                checkpointer.save(finished, description)
            if progress and config.samples.every and finished % config.samples.every == 0:
                write_samples(recipe, run, config.samples, progress.board, finished, world.device)
        if regular:
            meter.restart()
    if progress:
        progress.close()
        print(f"done: {run} (EMA weights in {latest_checkpoint(run)})", flush=True)
    return run


class TrainingStep:
    """Forward, loss and backward of one step."""

    def __init__(
        self, model: LanguageModel, config: LMConfig, arch: Architecture, world: World, seed: int
    ) -> None:
        self._model = model
        self._config = config
        self._arch = arch
        self._world = world
        self._seed = seed

    def __call__(self, batch: Batch, step: int) -> Outcome:
        """Leave the gradient of the global batch's objective in the parameters."""
        config, world = self._config, self._world
        dropped = dropped_text(
            self._seed, step, config.batch_size, config.cfg.dropout, config.cfg.granularity
        )
        logits, hidden, targets = _forward(self._model, batch, dropped, config, world, self._arch)
        sums, counts = stream_losses(logits, targets)
        counts = sum_over_processes(counts, world).clamp(min=1)
        objective = (
            (sums / counts).mean() if config.stream_loss == "mean" else (sums / counts).sum()
        )
        # FSDP averages gradients over processes; the objective is a sum over them.
        objective = objective * world.size
        outcome = Outcome(sums.detach() / counts, float(dropped.mean()))
        chosen = np.ones_like(dropped) if config.rr.apply == "always" else dropped
        if not chosen.any():
            objective.backward()
            return outcome
        if not config.rr.weight:
            with torch.no_grad():
                outcome.rr, outcome.correlation = self._regularization(batch, hidden, chosen)
            objective.backward()
            return outcome
        # A view of its own: the regularization's share of the gradient can be told apart there.
        states = hidden.view_as(hidden)
        states.retain_grad()
        whole: list[Tensor] = []
        hidden.register_hook(whole.append)
        rr, outcome.correlation = self._regularization(batch, states, chosen)
        outcome.rr = rr.detach()
        (objective + config.rr.weight * rr).backward()
        assert states.grad is not None
        shares = (states.grad.float(), (whole[0] - states.grad).float())
        outcome.gradients = torch.stack([share.square().sum() for share in shares])
        outcome.gradients /= world.size**2
        return outcome

    def _regularization(
        self, batch: Batch, hidden: Tensor, chosen: NDArray[np.bool_]
    ) -> tuple[Tensor, Tensor]:
        """L_rr over the clips `chosen` of the global batch, and how the similarities correlate."""
        how, world = self._config.rr, self._world
        mask = valid_steps(batch.lengths, self._arch.n_codebooks, hidden.shape[1])
        audio = pool(hidden, mask, how.pool)
        states = batch.text
        if how.text == "projected":
            # Under FSDP the root's weights stay whole from the forward pass to the backward one.
            with torch.no_grad(), _precision(self._config, world):
                states = self._model.text_projection(states)
        text = pool(states, batch.text_mask, how.pool)
        places = torch.from_numpy(chosen).to(audio.device)
        if how.scope == "global":
            audio, text = gather_rows(audio, world), gather_rows(text, world)
        else:
            places = places.view(world.size, -1)[world.rank]
        audio, text = audio[places], text[places]
        return (
            representation_regularization(audio, text),
            similarity_correlation(audio.detach(), text),
        )


class Outcome:
    """What one step came to, still on the device."""

    def __init__(self, shares: Tensor, dropped: float) -> None:
        self._shares = shares
        self.dropped = dropped
        """Share of the global batch that trained without text."""
        self.rr: Tensor | None = None
        """L_rr where it was taken, before its weight."""
        self.correlation: Tensor | None = None
        """Of the two similarity matrices."""
        self.gradients: Tensor | None = None
        """Squared norms of the gradients of weighted L_rr and of cross-entropy with respect to this
        process's last hidden states, float32 `[2]`."""

    def row(self, world: World) -> dict[str, Any]:
        """Losses over the global batch (all processes must call this)."""
        losses = sum_over_processes(self._shares, world).tolist()
        row = {"loss": sum(losses) / len(losses), "loss_per_stream": losses}
        row["dropped"] = self.dropped
        if self.rr is not None and self.correlation is not None:
            # Equal on all processes with scope global; their mean with scope local.
            both = torch.stack([self.rr, self.correlation])
            found = (sum_over_processes(both, world) / world.size).tolist()
            row["rr"], row["rr_correlation"] = found
        if self.gradients is not None:
            norms = sum_over_processes(self.gradients, world).sqrt().tolist()
            row["rr_grad_norm"], row["ce_grad_norm"] = norms
        return row


@torch.no_grad()
def validate(
    model: LanguageModel,
    dataset: ShardDataset,
    order: ClipOrder,
    recipe: Recipe,
    config: LMConfig,
    world: World,
) -> dict[str, float]:
    """Mean cross-entropy on the clips of `order`, each counted once, with and without text."""
    loader = _loader(dataset, order, recipe, config, world)
    batches = min(config.valid_batches, math.ceil(order.epoch_size / config.batch_size))
    share = config.batch_size // world.size
    places = torch.arange(share) + world.rank * share
    row = {}
    for name, drop in (("valid_loss", False), ("valid_loss_uncond", True)):
        dropped = np.full(config.batch_size, drop)
        total, count = torch.zeros((), device=world.device), 0
        for step, batch in enumerate(loader.batches(0, batches)):
            # The last batch runs on into the next epoch: those clips were counted before.
            new = places + step * config.batch_size < order.epoch_size
            batch = replace(batch, lengths=batch.lengths * new).to(world.device)
            logits, _, targets = _forward(model, batch, dropped, config, world, model.arch)
            sums, counts = stream_losses(logits, targets)
            total += sum_over_processes(sums.sum(), world)
            count += int(sum_over_processes(counts.sum(), world))
        row[name] = float(total) / count
    if isinstance(model, FSDPModule):
        # Without a backward pass the root stays whole: nobody could exchange its weights then.
        model.reshard()
    return row


def architecture(config: LMConfig, summary: dict[str, Any]) -> Architecture:
    """The decoder's shape: size from the recipe, streams, codes and text width from the shards."""
    size = config.model
    return Architecture(
        d_model=size.d_model,
        n_layers=size.n_layers,
        n_heads=size.n_heads,
        ff_mult=size.ff_mult,
        n_codebooks=int(summary["n_codebooks"]),
        codebook_size=int(summary["codebook_size"]),
        text_dim=int(summary["text_dim"]),
    )


def describe(
    recipe: Recipe,
    config: LMConfig,
    arch: Architecture,
    summary: dict[str, Any],
    longest_s: float,
) -> dict[str, Any]:
    """Content of `model.json`: all that generation must know about a model.

    Args:
        longest_s: longest training clip in seconds.
    """
    return {
        "architecture": arch.as_dict(),
        "codec_id": summary["codec_id"],
        "text_encoder_id": summary["text_encoder_id"],
        "prompt_policy": summary.get("prompt_policy", "lemmas"),
        "sample_rate": summary["sample_rate"],
        "frame_rate": summary["frame_rate"],
        "segment_s": config.segment_s,
        "trained_s": min(config.segment_s, longest_s),
        "recipe": recipe.name,
        "run": config.run,
    }


def _check_finite(step: int, what: str, value: float, run: Path) -> None:
    if not math.isfinite(value):
        raise AttuneError(
            f"step {step}: {what} is {value}; lower lm.optim.lr; the last good checkpoint, if one "
            f"was written, is named in {run / 'latest'}"
        )


def _forward(
    model: LanguageModel,
    batch: Batch,
    dropped: NDArray[np.bool_],
    config: LMConfig,
    world: World,
    arch: Architecture,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, hidden states and targets of this process's share of a batch."""
    inputs, targets = delay(batch.codes, batch.lengths, arch.special)
    text: Tensor | None = batch.text
    mask: Tensor | None = batch.text_mask
    if dropped.all():
        # Nobody in the global batch has text: all processes skip cross-attention alike.
        text = mask = None
    elif dropped.any():
        mine = torch.from_numpy(dropped).view(world.size, -1)[world.rank].to(inputs.device)
        mask = batch.text_mask & ~mine[:, None]
    with _precision(config, world):
        logits, hidden = model(inputs, text, mask)
    return logits, hidden, targets


def _precision(config: LMConfig, world: World) -> AbstractContextManager[Any]:
    if config.precision == "bf16":
        return torch.autocast(world.device.type, dtype=torch.bfloat16)
    return nullcontext()


def _loader(
    dataset: ShardDataset, order: ClipOrder, recipe: Recipe, config: LMConfig, world: World
) -> Loader:
    return Loader(
        dataset,
        order,
        segment_s=config.segment_s,
        seed=recipe.seed,
        batch_size=config.batch_size,
        rank=world.rank,
        world=world.size,
        prefetch=config.prefetch,
    )


def _announce(run: Path, config: LMConfig, estimate: Preflight, world: World, done: int) -> None:
    rr = f"rr {config.rr.weight:g} x {config.rr.pool}-pooled" if config.rr.weight else "no rr"
    print(
        f"{run}: {world.size} x {world.device.type} ({config.precision}), {rr}, text dropped "
        f"{config.cfg.dropout:.0%}",
        *estimate.lines(),
        sep="\n",
        flush=True,
    )
    if done:
        what = "nothing to do" if done >= config.steps else "going on"
        print(f"{done} steps are done: {what}", flush=True)
