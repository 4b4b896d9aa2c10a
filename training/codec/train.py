"""Train EnCodec from scratch: `python -m training codec`.

Reads top to bottom: data, model, resume, loop, validation, the finished folder.  Every random
choice is a function of (seed, step), so a killed run goes on exactly where it stopped.  The
generator's loss is time + multi-scale mel + commitment; the adversarial terms join it in
`generator_loss`.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from common.allocator import keep_freed_memory
from common.codec import codec_identity
from common.config import Recipe
from common.errors import AttuneError
from training.codec.config import CodecTrainingConfig
from training.codec.data import AudioClips, load_clips, segment_batch
from training.codec.losses import MultiScaleMelLoss, si_sdr
from training.codec.model import build_model
from training.codec.quantizer import Quantized, ResidualQuantizerTrainer, codebook_usage
from training.codec.run_files import (
    EXECUTION_ONLY,
    check_free,
    claim,
    finished,
    load_checkpoint,
    log_row,
    save_checkpoint,
    save_codec,
)


@dataclass
class GeneratorTerms:
    """The generator's loss and its parts, all scalars before weighting but `total`."""

    total: Tensor
    parts: dict[str, float] = field(default_factory=dict)


def generator_loss(
    config: CodecTrainingConfig,
    mel_loss: MultiScaleMelLoss,
    estimate: Tensor,
    target: Tensor,
    quantized: Quantized | None,
) -> GeneratorTerms:
    """Weighted sum of the reconstruction terms (waveforms [B, S]) and the commitment loss.

    The adversarial and feature-matching terms of a discriminator belong here as well.
    """
    parts = {"time": F.l1_loss(estimate, target), "mel": mel_loss(estimate, target)}
    if quantized is not None:
        parts["commitment"] = quantized.commitment
    weights = config.losses
    total = torch.stack([getattr(weights, name) * value for name, value in parts.items()]).sum()
    return GeneratorTerms(total, {name: float(value.detach()) for name, value in parts.items()})


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
    clips = load_clips(config.audio, recipe.sample_rate, min_duration_s=0.1)
    held_out = load_clips(config.validation, recipe.sample_rate, min_duration_s=0.1)
    console.print(
        f"codec: {len(clips.waves)} clips ({clips.samples / recipe.sample_rate / 60:.1f} min), "
        f"{len(held_out.waves)} held out; refused {clips.refused or 'none'}"
    )

    # 2. Model and optimizer.
    torch.manual_seed(recipe.seed)
    model = build_model(config.architecture, recipe.sample_rate)
    quantizer = ResidualQuantizerTrainer(
        model.quantizer, config.codebook_decay, config.dead_code_threshold
    )
    mel_loss = MultiScaleMelLoss(recipe.sample_rate, config.mel_windows, config.losses.mel_squared)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, betas=config.betas)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    console.print(f"codec: {size:.2f} M parameters, {config.steps} steps -> {out}")

    # 3. Resume.
    run.mkdir(parents=True, exist_ok=True)
    claim(run, settings)
    start = load_checkpoint(run, model, optimizer)
    if start:
        console.print(f"codec: going on at step {start}")
    writer = SummaryWriter(str(run / "tb"), purge_step=start + 1)

    # 4. The loop.
    model.train()
    began, seconds_of_audio = time.monotonic(), 0.0
    for step in range(start, config.steps):
        target = segment_batch(clips, segment, config.batch_size, recipe.seed, step)
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        latents = model.encoder(target[:, None])
        quantized = None
        if step >= config.quantize_from_step:
            if step == config.quantize_from_step:
                quantizer.start(latents.detach(), generator)
            quantized = quantizer(latents, generator)
        decoded = model.decoder(latents if quantized is None else quantized.latents)
        terms = generator_loss(config, mel_loss, decoded[:, 0, :segment], target, quantized)
        optimizer.zero_grad(set_to_none=True)
        terms.total.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        if not torch.isfinite(norm):
            raise AttuneError(
                f"codec training: gradient is not finite at step {step + 1}; lower "
                "codec_training.learning_rate"
            )
        optimizer.step()
        seconds_of_audio += config.batch_size * config.segment_s

        if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
            speed = seconds_of_audio / (time.monotonic() - began)
            left = (config.steps - step - 1) * config.batch_size * config.segment_s / speed
            row: dict[str, Any] = {
                "step": step + 1,
                "loss": terms.total.item(),
                **terms.parts,
                "grad_norm": norm.item(),
                "lr": learning_rate(config, step),
                "audio_s_per_s": round(speed, 2),
            }
            if quantized is not None:
                used, perplexity = codebook_usage(
                    quantized.codes, config.architecture.codebook_size
                )
                row |= {"used": used, "perplexity": perplexity}
            log_row(run, writer, row)
            usage = "/".join(f"{p:.0f}" for p in row.get("perplexity", [])) or "-"
            parts = " ".join(f"{name} {value:.4f}" for name, value in terms.parts.items())
            console.print(
                f"step {step + 1}/{config.steps} loss {row['loss']:.4f} {parts} "
                f"perplexity {usage} grad {row['grad_norm']:.2f} {speed:.1f}x real time "
                f"eta {left / 60:.0f} min",
                highlight=False,
                soft_wrap=True,
            )
        if (step + 1) % config.checkpoint_every == 0 and step + 1 < config.steps:
            save_checkpoint(run, model, optimizer, step + 1)
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
