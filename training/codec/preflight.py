"""What a codec's training will take, worked out before it starts: sizes, audio, steps, places."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from training.codec.config import CodecTrainingConfig
from training.codec.data import ClipsOnDisk, stated_lengths
from training.codec.state import CodecState


@dataclass(frozen=True)
class CodecPreflight:
    """Facts of a run."""

    facts: dict[str, Any]
    """parameters, discriminator_parameters (None without one), precision, audio and validation
    (clips, seconds, untold: clips whose length nobody states), steps, batch_size, segment_s,
    processes, device, out, run, finished."""

    def as_dict(self) -> dict[str, Any]:
        """For a script."""
        return self.facts

    def lines(self) -> list[str]:
        """For a person."""
        found = self.facts
        parameters = found["discriminator_parameters"]
        size = f"{parameters / 1e6:.2f}M parameters" if parameters else "none"
        heard = found["steps"] * found["batch_size"] * found["segment_s"]
        there = found["audio"]["seconds"]
        return [
            f"codec     {found['parameters'] / 1e6:.2f}M parameters, {found['precision']}; "
            f"discriminator: {size}",
            f"audio     {_told(found['audio'])}",
            f"held out  {_told(found['validation'])}",
            f"steps     {found['steps']} of {found['batch_size']} x {found['segment_s']:g} s on "
            f"{found['processes']} x {found['device']}"
            + (f", {heard / there:.1f} times the audio" if there else ""),
            f"goes to   {found['out']}"
            + (" (finished)" if found["finished"] else f", checkpoints and log to {found['run']}"),
        ]


def preflight(
    state: CodecState,
    audio: ClipsOnDisk,
    validation: ClipsOnDisk,
    config: CodecTrainingConfig,
    processes: int,
    device: str,
    run: Path,
    finished: bool,
) -> CodecPreflight:
    """Work out a run; only the headers of audio files are read.

    Args:
        config: with the precision that `auto` came to.
        device: type of the device.
        run: where checkpoints and log go.
        finished: nothing would be left to do.
    """
    return CodecPreflight(
        {
            "parameters": size(state.model),
            "precision": config.precision,
            "discriminator_parameters": size(state.discriminator) or None,
            "audio": _amount(audio),
            "validation": _amount(validation),
            "steps": config.steps,
            "batch_size": config.batch_size,
            "segment_s": config.segment_s,
            "processes": processes,
            "device": device,
            "out": config.out,
            "run": str(run),
            "finished": finished,
        }
    )


def size(model: nn.Module | None) -> int:
    """Number of a model's parameters."""
    return sum(parameter.numel() for parameter in model.parameters()) if model else 0


def _amount(clips: ClipsOnDisk) -> dict[str, Any]:
    lengths = stated_lengths(clips)
    stated = [length for length in lengths if length is not None]
    return {
        "clips": len(lengths),
        "seconds": round(sum(stated), 3),
        "untold": len(lengths) - len(stated),
    }


def _told(amount: dict[str, Any]) -> str:
    untold = f", {amount['untold']} of unknown length" if amount["untold"] else ""
    return f"{amount['clips']} clips, {amount['seconds']:.1f} s{untold}"
