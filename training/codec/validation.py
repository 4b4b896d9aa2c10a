"""Validation of a codec on whole clips that it is not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from common.audio import Waveform
from training.codec.data import ClipsInMemory
from training.codec.losses import MultiScaleMelLoss, si_sdr
from training.codec.quantizer import count_uses, usage
from training.distributed import World, gather_objects, sum_over_processes

EXAMPLES = 8
"""Reconstructions shown in TensorBoard and in the report."""


@dataclass(frozen=True)
class Example:
    """A clip and its reconstruction."""

    original: Waveform
    reconstruction: Waveform
    si_sdr_db: float
    mel: float


@dataclass(frozen=True)
class Validation:
    """Figures of all clips, the same on every process, and examples of this process's part."""

    figures: dict[str, Any]
    """clips, si_sdr_db (mean, dB), mel (multi-scale mel distance), time (L1), and per stream used
    (share of codes) and perplexity over all frames."""
    examples: list[Example]


@torch.inference_mode()
def validate(
    model: Any, mel_loss: MultiScaleMelLoss, clips: ClipsInMemory, world: World
) -> Validation:
    """Encode and decode whole clips one by one, in fp32.

    Args:
        model: an `EncodecModel`; its mode (training or not) is restored.
        clips: this process's part.
    """
    was_training = model.training
    model.eval()
    scores: list[tuple[float, float, float]] = []
    kept: list[Example] = []
    shape = (model.quantizer.num_quantizers, model.config.codebook_size)
    uses = torch.zeros(shape, dtype=torch.int64, device=world.device)
    for wave in clips.waves:
        target = torch.from_numpy(wave)[None].to(world.device)
        codes = model.quantizer.encode(model.encoder(target[:, None]))
        estimate = model.decoder(model.quantizer.decode(codes))[:, 0, : target.shape[-1]]
        found = (
            float(si_sdr(estimate, target)),
            float(mel_loss(estimate, target)),
            float(F.l1_loss(estimate, target)),
        )
        scores.append(found)
        uses += count_uses(codes, shape[1])
        if len(kept) < EXAMPLES:
            kept.append(Example(wave, estimate[0].cpu().numpy(), *found[:2]))
    model.train(was_training)
    every = [score for part in gather_objects(scores, world) for score in part]
    si_sdr_db, mel, time = (sum(column) / len(every) for column in zip(*every, strict=True))
    used, perplexity = usage(sum_over_processes(uses, world).cpu())
    figures = {
        "clips": len(every),
        "si_sdr_db": round(si_sdr_db, 3),
        "mel": round(mel, 4),
        "time": round(time, 5),
        "used": [round(value, 4) for value in used],
        "perplexity": [round(value, 1) for value in perplexity],
    }
    return Validation(figures, kept)
