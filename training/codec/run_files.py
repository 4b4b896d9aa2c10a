"""The files of a codec run: what it was started with, checkpoint, log, and the finished folder."""

from __future__ import annotations

import json
import os
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from common.config import Recipe
from common.errors import AttuneError
from training.codec.config import CodecTrainingConfig
from training.codec.data import AudioClips

EXECUTION_ONLY = {"out", "threads", "log_every", "checkpoint_every"}
"""Keys that may change when a run goes on: they do not decide what is learnt."""


def finished(out: Path, run: Path, settings: dict[str, Any]) -> bool:
    """Whether this very codec is done; one made with other settings is never overwritten."""
    if not (out / "model.safetensors").is_file():
        return False
    claimed = run / "config.json"
    if claimed.is_file() and _read_settings(claimed) == json.loads(json.dumps(settings)):
        return True
    raise AttuneError(
        f"codec_training.out {out} already holds a codec made with another configuration; "
        "name another folder or remove it"
    )


def check_free(out: Path) -> None:
    """The finished folder is renamed to `out`: better to know now that this will succeed."""
    empty = out.is_dir() and not out.is_symlink() and not any(out.iterdir())
    if not out.name or (os.path.lexists(out) and not empty):
        raise AttuneError(
            f"codec_training.out {out} exists and is not a codec; name another folder or remove it"
        )


def _read_settings(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise AttuneError(
            f"{path} is damaged; remove {path.parent} to train from the beginning"
        ) from error


def claim(run: Path, settings: dict[str, Any]) -> None:
    """Write the run's configuration down, or check that it is still the same."""
    path = run / "config.json"
    wanted = json.loads(json.dumps(settings))
    if path.is_file():
        found = _read_settings(path)
        differs = sorted(k for k in wanted | found if wanted.get(k) != found.get(k))
        if differs:
            raise AttuneError(
                f"{run} was begun with another configuration ({', '.join(differs)} differ); name "
                "another codec_training.out or remove the folder"
            )
        return
    path.write_text(json.dumps(wanted, indent=2) + "\n")


def save_checkpoint(
    run: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Weights, codebooks and optimizer, replaced in one move: safetensors, never pickle."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    tensors["step"] = torch.tensor(step)
    partial = run / "checkpoint.safetensors.partial"
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(run / "checkpoint.safetensors")


def load_checkpoint(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore the newest checkpoint; the number of steps done, 0 without one."""
    path = run / "checkpoint.safetensors"
    if not path.is_file():
        return 0
    try:
        tensors = load_file(path)
        step = int(tensors.pop("step"))
    except (OSError, SafetensorError, KeyError) as error:
        raise AttuneError(
            f"{path} is damaged ({error}); remove it to train from the beginning"
        ) from error
    model.load_state_dict(
        {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    )
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            states.setdefault(int(index), {})[key] = value
    whole = optimizer.state_dict()
    optimizer.load_state_dict({"state": states, "param_groups": whole["param_groups"]})
    return step


def log_row(run: Path, writer: SummaryWriter, row: dict[str, Any]) -> None:
    """One row of `log.jsonl`, and the same to TensorBoard."""
    with (run / "log.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    for name, value in row.items():
        if isinstance(value, list):
            for stream, item in enumerate(value):
                writer.add_scalar(f"codec/{name}_{stream}", item, row["step"])
        elif name != "step":
            writer.add_scalar(f"codec/{name}", value, row["step"])


def save_codec(
    out: Path,
    run: Path,
    model: Any,
    recipe: Recipe,
    config: CodecTrainingConfig,
    settings: dict[str, Any],
    clips: AudioClips,
    measured: dict[str, Any],
) -> None:
    """Write the finished folder; it appears whole or not at all."""
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed right here
    model.save_pretrained(partial)  # weight norm kept apart, as in the released EnCodec weights
    minutes = clips.samples / recipe.sample_rate / 60
    usage = "\n".join(
        f"| {k} | {used:.1%} | {perplexity:.1f} |"
        for k, (used, perplexity) in enumerate(
            zip(measured["used"], measured["perplexity"], strict=True)
        )
    )
    (partial / "README.md").write_text(
        f"# Codec of recipe `{recipe.name}`\n\n"
        f"An EnCodec ({recipe.sample_rate} Hz, {config.architecture.n_codebooks} x "
        f"{config.architecture.codebook_size} codes) in Hugging Face `EncodecModel` form, trained "
        f"from scratch.\n\n"
        f"- Command: `python -m training codec --config {recipe.source_file}`\n"
        f"- Finished: {date.today().isoformat()}, {config.steps} steps of {config.batch_size} x "
        f"{config.segment_s:g} s, {os.cpu_count()} CPU cores, torch {torch.__version__}\n"
        f"- Data: {len(clips.waves)} clips, {minutes:.1f} minutes; refused files: "
        f"{clips.refused or 'none'}\n"
        f"- Losses: time {config.losses.time:g}, multi-scale mel {config.losses.mel:g} "
        f"(squared log error {config.losses.mel_squared:g}), "
        f"commitment {config.losses.commitment:g}; no adversarial part\n\n"
        f"Measured on {measured['clips']} held-out clips, whole: SI-SDR "
        f"{measured['si_sdr_db']:.2f} dB, mel distance {measured['mel']:.4f}, L1 "
        f"{measured['time']:.5f}.\n\n"
        f"| stream | codes used | perplexity |\n|---|---|---|\n{usage}\n\n"
        f"## Settings\n\n```json\n{json.dumps(settings, indent=2)}\n```\n"
    )
    (run / "validation.json").write_text(json.dumps(measured, indent=2) + "\n")
    partial.rename(out)
