"""Checkpoints of a training run.

    RUN/config.json              what the run was started with
    RUN/latest                   name of the newest finished checkpoint, replaced atomically
    RUN/checkpoints/step-00001000/
        state/                   weights, optimizer, EMA, step (PyTorch DCP: reshards on load)
        model.safetensors        EMA weights, whole: all that generation needs
        model.json               architecture, codec, text encoder, rates, step

A checkpoint is written under another name and renamed when it is whole; `latest` follows after.  So
whatever is killed whenever, `latest` names a checkpoint that can be loaded.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from common.errors import AttuneError
from training.async_save import BackgroundSave
from training.distributed import World, full
from training.ema import ExponentialMovingAverage
from training.lm.model import Architecture, LanguageModel

_NEEDED = ("architecture", "codec_id", "text_encoder_id", "prompt_policy", "segment_s", "step")
"""Keys of `model.json` that generation reads."""


class Checkpointer:
    """Saves and restores one run; every process calls the same methods in the same order."""

    def __init__(
        self,
        run: Path,
        world: World,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        ema: ExponentialMovingAverage,
        keep: int,
        background: bool = False,
    ) -> None:
        self._run = run
        self._world = world
        self._model = model
        self._optimizer = optimizer
        self._ema = ema
        self._keep = keep
        self._background = BackgroundSave(world) if background else None
        self._saving = ""

    def save(self, step: int, description: dict[str, Any]) -> Path:
        """Write the checkpoint of `step` finished steps and point `latest` to it.

        In the background it returns once everything is copied; `wait` and `check` tell the rest.

        Args:
            description: content of `model.json`, which gets `step` added.
        """
        folder = self._run / "checkpoints" / f"step-{step:08d}"
        partial = folder.with_name(folder.name + ".partial")
        self.wait()
        if self._world.is_first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self._barrier()
        state = self._state() | {"step": step, "ema_updates": self._ema.updates}
        weights = {}
        for name, shared in self._ema.weights.items():
            weight = full(shared)
            if self._world.is_first:  # a copy where training goes on with what is still written
                weights[name] = weight.to("cpu", copy=self._background is not None)

        def publish() -> None:
            if self._world.is_first:
                save_file(weights, partial / "model.safetensors")
                document = json.dumps(description | {"step": step}, indent=2) + "\n"
                (partial / "model.json").write_text(document)
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)
                write_atomically(self._run / "latest", folder.name + "\n")
                self._prune(folder)

        if self._background:
            self._saving = folder.name
            self._background.start(state, partial / "state", publish)
            return folder
        with _quiet():
            dcp.save(state, checkpoint_id=partial / "state", no_dist=self._world.size == 1)
        publish()
        self._barrier()
        return folder

    def check(self) -> None:
        """Between steps: has what is written in the background failed?

        Raises:
            AttuneError: it has.
        """
        if self._background:
            with self._told():
                self._background.check()

    def wait(self) -> None:
        """Until what is written in the background is finished, on every process.

        Raises:
            AttuneError: it could not be written.
        """
        if self._background and self._saving:
            with self._told():
                self._background.wait()
            self._saving = ""
            self._barrier()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (Exception, CheckpointException) as error:
            raise AttuneError(
                f"checkpoint {self._saving}: cannot be written: {_innermost(error)}; the last good "
                f"one, if there is one, is named in {self._run / 'latest'}"
            ) from error

    def load(self, folder: Path) -> int:
        """Restore weights, optimizer and EMA in place; returns the number of finished steps.

        Raises:
            AttuneError: the checkpoint is damaged.
        """
        state: dict[str, Any] = self._state() | {"step": 0, "ema_updates": 0}
        try:
            with _quiet():
                dcp.load(state, checkpoint_id=folder / "state", no_dist=self._world.size == 1)
        except (Exception, CheckpointException) as error:  # whatever a damaged pickle may raise
            raise AttuneError(
                f"checkpoint {folder}: cannot be loaded: {_innermost(error)}; name an earlier one "
                f"in {self._run / 'latest'} or start over with --fresh"
            ) from error
        set_model_state_dict(self._model, state["model"])
        set_optimizer_state_dict(self._model, self._optimizer, state["optimizer"])
        self._ema.updates = state["ema_updates"]
        return int(state["step"])

    def _state(self) -> dict[str, Any]:
        return {
            "model": get_model_state_dict(self._model),
            "optimizer": get_optimizer_state_dict(self._model, self._optimizer),
            "ema": self._ema.weights,  # loaded in place
        }

    def _prune(self, saved: Path) -> None:
        """Keep the newest up to `saved`; later ones are left from before the run went back."""
        finished = sorted((self._run / "checkpoints").glob("step-????????"))
        kept = [folder for folder in finished if folder.name <= saved.name][-self._keep :]
        for folder in finished:
            if folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)

    def _barrier(self) -> None:
        if self._world.size > 1:
            dist.barrier()


def latest_checkpoint(run: Path) -> Path | None:
    """The newest finished checkpoint of a run, if there is one.

    Raises:
        AttuneError: `latest` names a folder that is gone.
    """
    try:
        name = (run / "latest").read_text().strip()
    except FileNotFoundError:
        return None
    folder = run / "checkpoints" / name
    if not (folder / "model.json").is_file():
        raise AttuneError(
            f"{run / 'latest'} names {name}, which is not in {folder.parent}; name another one "
            "there or start over with --fresh"
        )
    return folder


def load_for_inference(folder: Path) -> tuple[LanguageModel, dict[str, Any]]:
    """The EMA model of a checkpoint, on the CPU in eval mode, and its `model.json`.

    Raises:
        AttuneError: missing or damaged files.
    """
    try:
        description = json.loads((folder / "model.json").read_text())
        missing = [key for key in _NEEDED if key not in description]
        if missing:
            raise AttuneError(
                f"checkpoint {folder}: model.json lacks {', '.join(missing)}; it is damaged or "
                "was written by another version: name another checkpoint, or train again"
            )
        model = LanguageModel(Architecture(**description["architecture"]))
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AttuneError(f"checkpoint {folder}: cannot be loaded: {reason}") from error
    return model.eval().requires_grad_(False), description


def _innermost(error: BaseException) -> str:
    """What went wrong at first, as one line: DCP wraps it in a report of all processes."""
    while True:
        if isinstance(error, CheckpointException) and error.failures:
            error = next(iter(error.failures.values()))[0]
        elif error.__cause__ is not None:
            error = error.__cause__
        else:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file such that readers see the old or the new content, also after a crash."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """DCP warns about running without a process group, which is meant here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
