"""What a codec's training will take, worked out before it starts: sizes, audio, steps, places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from training.codec.config import CodecTrainingConfig
from training.codec.data import ClipsOnDisk, stated_lengths
from training.codec.state import CodecState


def preflight(
    state: CodecState,
    audio: ClipsOnDisk,
    validation: ClipsOnDisk,
    config: CodecTrainingConfig,
    run: Path,
) -> dict[str, Any]:
    """Facts of a run; only the headers of audio files are read.

    Args:
        config: with its precision settled.
        run: folder of checkpoints and log.

    Returns:
        parameters, precision, discriminator_parameters, audio and validation (clips, seconds,
        untold: number of clips of unknown length), steps, batch_size, segment_s, out, run.
    """
    return {
        "parameters": size(state.model),
        "precision": config.precision,
        "discriminator_parameters": size(state.discriminator),
        "audio": _amount(audio),
        "validation": _amount(validation),
        "steps": config.steps,
        "batch_size": config.batch_size,
        "segment_s": config.segment_s,
        "out": config.out,
        "run": str(run),
    }


def preflight_lines(facts: dict[str, Any]) -> list[str]:
    """The facts for a person.

    Args:
        facts: as `preflight` returns, with processes, device and finished (nothing left to do).
    """
    steps, segments, seconds = (facts[name] for name in ("steps", "batch_size", "segment_s"))
    there = facts["audio"]["seconds"]
    rounds = f", {steps * segments * seconds / there:.1f} times the audio" if there else ""
    place = " (finished)" if facts["finished"] else f", checkpoints and log to {facts['run']}"
    return [
        f"codec     {facts['parameters'] / 1e6:.2f}M parameters, {facts['precision']}; "
        f"discriminator: {facts['discriminator_parameters'] / 1e6:.2f}M parameters",
        f"audio     {_line(facts['audio'])}",
        f"held out  {_line(facts['validation'])}",
        f"steps     {steps} of {segments} x {seconds:g} s on {facts['processes']} x "
        f"{facts['device']}{rounds}",
        f"goes to   {facts['out']}{place}",
    ]


def size(model: nn.Module) -> int:
    """Number of a model's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def _amount(clips: ClipsOnDisk) -> dict[str, Any]:
    lengths = stated_lengths(clips)
    stated = [length for length in lengths if length is not None]
    untold = len(lengths) - len(stated)
    return {"clips": len(lengths), "seconds": round(sum(stated), 3), "untold": untold}


def _line(amount: dict[str, Any]) -> str:
    untold = f", {amount['untold']} of unknown length" if amount["untold"] else ""
    return f"{amount['clips']} clips, {amount['seconds']:.1f} s{untold}"
