"""Train EnCodec from scratch: `python -m training codec`.

Reads top to bottom: data, model, resume, loop, validation, the finished folder.  Every random
choice is a function of (seed, step), so a killed run goes on exactly where it stopped.  What a step
does is in `step.py`.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from common.allocator import keep_freed_memory
from common.codec import codec_identity
from common.config import Recipe
from common.errors import AttuneError
from training.codec.config import CodecTrainingConfig
from training.codec.data import AudioClips, load_clips, segment_batch
from training.codec.losses import MultiScaleMelLoss, si_sdr
from training.codec.quantizer import ResidualQuantizerTrainer, codebook_usage
from training.codec.run_files import (
    EXECUTION_ONLY,
    check_free,
    claim,
    finished,
    log_row,
    save_codec,
)
from training.codec.state import CodecState, load_checkpoint, save_checkpoint
from training.codec.step import CodecStep


def learning_rate(config: CodecTrainingConfig, step: int) -> float:
    """Linear warm-up, then a cosine down to `final_learning_rate`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    low = config.final_learning_rate
    return low + (config.learning_rate - low) * cosine


def train_codec(recipe: Recipe, config: CodecTrainingConfig, console: Console) -> Path:
    """Train, or go on training, the codec of a recipe.

    Returns:
        The folder of the finished codec: config.json, model.safetensors, README.md (model card).

    Raises:
        AttuneError: unusable audio, a folder that holds something else, or a run folder made with
            another configuration.
    """
    out = Path(config.out)
    run = out.with_name(out.name + ".run") if out.name else out
    settings = {
        "sample_rate": recipe.sample_rate,
        "seed": recipe.seed,
        **config.model_dump(exclude=EXECUTION_ONLY),
    }
    if finished(out, run, settings):
        console.print(f"codec in {out} is finished; kept ({codec_identity(str(out))})")
        return out
    check_free(out)
    keep_freed_memory()
    if config.threads:
        torch.set_num_threads(config.threads)

    # 1. Data.
    segment = round(config.segment_s * recipe.sample_rate)
    longest = max(config.discriminator.windows)
    if config.losses.use_discriminator and segment < longest:
        raise AttuneError(
            f"codec_training.segment_s {config.segment_s:g} is {segment} samples, and the "
            f"discriminator's windows take up to {longest}; lengthen segments or drop windows"
        )
    clips = load_clips(config.audio, recipe.sample_rate, min_duration_s=0.1)
    held_out = load_clips(config.validation, recipe.sample_rate, min_duration_s=0.1)
    console.print(
        f"codec: {len(clips.waves)} clips ({clips.samples / recipe.sample_rate / 60:.1f} min), "
        f"{len(held_out.waves)} held out; refused {clips.refused or 'none'}"
    )

    # 2. Model and optimizer.
    state = CodecState(config, recipe.sample_rate, recipe.seed)
    model = state.model
    quantizer = ResidualQuantizerTrainer(
        model.quantizer, config.codebook_decay, config.dead_code_threshold
    )
    mel_loss = MultiScaleMelLoss(recipe.sample_rate, config.mel_windows, config.losses.mel_squared)
    judge = _size(state.discriminator) if state.discriminator else "no"
    console.print(
        f"codec: {_size(model)} parameters, {judge} discriminator, {config.steps} steps -> {out}"
    )

    # 3. Resume.
    run.mkdir(parents=True, exist_ok=True)
    claim(run, settings)
    start = load_checkpoint(run, state)
    if start:
        console.print(f"codec: going on at step {start}")
    writer = SummaryWriter(str(run / "tb"), purge_step=start + 1)

    # 4. The loop.
    model.train()
    step_fn = CodecStep(state, quantizer, mel_loss, config, recipe.seed)
    began, seconds_of_audio = time.monotonic(), 0.0
    for step in range(start, config.steps):
        target = segment_batch(clips, segment, config.batch_size, recipe.seed, step)
        rate = learning_rate(config, step)
        outcome = step_fn(target, step, rate)
        seconds_of_audio += config.batch_size * config.segment_s

        if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
            speed = seconds_of_audio / (time.monotonic() - began)
            left = (config.steps - step - 1) * config.batch_size * config.segment_s / speed
            row: dict[str, Any] = {"step": step + 1, **outcome.row(config), "lr": rate}
            row["audio_s_per_s"] = round(speed, 2)
            if outcome.quantized is not None:
                used, perplexity = codebook_usage(
                    outcome.quantized.codes, config.architecture.codebook_size
                )
                row |= {"used": used, "perplexity": perplexity}
            log_row(run, writer, row)
            usage = "/".join(f"{p:.0f}" for p in row.get("perplexity", [])) or "-"
            parts = " ".join(f"{name} {row[name]:.4f}" for name in outcome.losses)
            console.print(
                f"step {step + 1}/{config.steps} loss {row['loss']:.4f} {parts} "
                f"perplexity {usage} grad {row['grad_norm']:.2f} {speed:.1f}x real time "
                f"eta {left / 60:.0f} min",
                highlight=False,
                soft_wrap=True,
            )
        if (step + 1) % config.checkpoint_every == 0 and step + 1 < config.steps:
            save_checkpoint(run, state, step + 1)
    writer.close()

    # 5. Validation on whole clips, and the finished folder.
    model.eval()
    measured = validate(model, mel_loss, held_out, config.architecture.codebook_size)
    save_codec(out, run, model, recipe, config, settings, clips, measured)
    console.print(f"codec: finished, {json.dumps(measured)}", highlight=False, soft_wrap=True)
    return out


@torch.inference_mode()
def validate(
    model: Any, mel_loss: MultiScaleMelLoss, clips: AudioClips, codebook_size: int
) -> dict[str, Any]:
    """Encode and decode whole clips one by one.

    Returns:
        Mean SI-SDR (dB), mel distance, L1, and usage and perplexity per stream over all frames.
    """
    scores, mels, times, codes = [], [], [], []
    for wave in clips.waves:
        target = torch.from_numpy(wave)[None]
        chosen = model.quantizer.encode(model.encoder(target[:, None]))
        estimate = model.decoder(model.quantizer.decode(chosen))[:, 0, : target.shape[-1]]
        scores.append(float(si_sdr(estimate, target)))
        mels.append(float(mel_loss(estimate, target)))
        times.append(float(F.l1_loss(estimate, target)))
        codes.append(chosen.flatten(1))
    used, perplexity = codebook_usage(torch.cat(codes, dim=1), codebook_size)
    n = len(scores)
    return {
        "clips": n,
        "si_sdr_db": round(sum(scores) / n, 3),
        "mel": round(sum(mels) / n, 4),
        "time": round(sum(times) / n, 5),
        "used": [round(value, 4) for value in used],
        "perplexity": [round(value, 1) for value in perplexity],
    }


def _size(model: nn.Module) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M"
