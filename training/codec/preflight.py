"""What a codec's training will take, told before it starts: sizes, audio, steps, places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from training.codec.config import CodecTrainingConfig
from training.codec.data import ClipsOnDisk, stated_lengths
from training.codec.state import CodecState
from training.distributed import World


def preflight(
    state: CodecState,
    audio: ClipsOnDisk,
    validation: ClipsOnDisk,
    config: CodecTrainingConfig,
    world: World,
    run: Path,
    finished: bool,
) -> dict[str, Any]:
    """Facts of a run; of files their headers alone are read.

    Args:
        config: with the precisions that `auto` came to.
        run: where checkpoints and log go.
        finished: nothing would be left to do.

    Returns:
        parameters, discriminator_parameters and discriminator_precision (None without one), audio
        and validation (clips, seconds, untold: clips whose length nobody states), steps,
        batch_size, segment_s, processes, device, precision, out, run, finished.
    """
    judge = state.discriminator
    return {
        "parameters": _size(state.model),
        "precision": config.precision,
        "discriminator_parameters": _size(judge) if judge else None,
        "discriminator_precision": config.discriminator.precision if judge else None,
        "audio": _amount(audio, config.workers),
        "validation": _amount(validation, config.workers),
        "steps": config.steps,
        "batch_size": config.batch_size,
        "segment_s": config.segment_s,
        "processes": world.size,
        "device": world.device.type,
        "out": config.out,
        "run": str(run),
        "finished": finished,
    }


def preflight_lines(found: dict[str, Any]) -> list[str]:
    """`preflight` for a person."""
    judge = "none"
    if found["discriminator_parameters"]:
        size = found["discriminator_parameters"] / 1e6
        judge = f"{size:.2f}M parameters, {found['discriminator_precision']}"
    heard = found["steps"] * found["batch_size"] * found["segment_s"]
    there = found["audio"]["seconds"]
    return [
        f"codec     {found['parameters'] / 1e6:.2f}M parameters, {found['precision']}; "
        f"discriminator: {judge}",
        f"audio     {_told(found['audio'])}",
        f"held out  {_told(found['validation'])}",
        f"steps     {found['steps']} of {found['batch_size']} x {found['segment_s']:g} s on "
        f"{found['processes']} x {found['device']}"
        + (f", {heard / there:.1f} times the audio" if there else ""),
        f"goes to   {found['out']}"
        + (" (finished)" if found["finished"] else f", checkpoints and log to {found['run']}"),
    ]


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _amount(clips: ClipsOnDisk, workers: int) -> dict[str, Any]:
    lengths = stated_lengths(clips, workers)
    told = [length for length in lengths if length is not None]
    return {
        "clips": len(lengths),
        "seconds": round(sum(told), 3),
        "untold": len(lengths) - len(told),
    }


def _told(amount: dict[str, Any]) -> str:
    untold = f", {amount['untold']} of unknown length" if amount["untold"] else ""
    return f"{amount['clips']} clips, {amount['seconds']:.1f} s{untold}"
