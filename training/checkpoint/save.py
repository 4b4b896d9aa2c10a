"""Save and load checkpoints of a training run, of the language model or of the codec.

    RUN/config.json              what the run was started with
    RUN/latest                   name of the newest finished checkpoint, replaced atomically
    RUN/best                     name of the checkpoint with the lowest validation loss
    RUN/checkpoints/step-00001000/
        state/                   everything that training changes (PyTorch DCP: reshards on load)
        model.safetensors        EMA weights, not sharded, for generation (not of a codec)
        model.json               architecture, codec, text encoder, rates, step, valid_loss

A kill at any time is harmless because of the order of operations:

1. every file is written into `step-NNNNNNNN.partial/` and flushed to the disk;
2. the folder is renamed: a folder without `.partial` is complete;
3. `latest` is replaced, so it always names a complete folder;
4. only then older checkpoints are deleted.

After a kill or a full disk before 3, `latest` still names the earlier checkpoint, which still
exists.  If a checkpoint is damaged later, the run resumes from the one before.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from common.errors import AttuneError
from training.checkpoint.background import BackgroundSave
from training.checkpoint.load import innermost, quiet
from training.checkpoint.plain_state import load_state
from training.distributed import World, full, on_all, on_first
from training.ema import ExponentialMovingAverage
from training.run.files import as_any_file, to_disk, write_atomically
from training.run.folder import DamagedCheckpoint, finished_checkpoints, what_is_missing

_FULL = 1 << 20
"""A disk with fewer free bytes counts as full."""


class Content(Protocol):
    """What a checkpoint keeps of a run."""

    def state(self) -> dict[str, Any]:
        """Everything that training changes, by name: tensors (loaded in place) and numbers."""

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the run from a loaded `state`."""

    def weights(self) -> dict[str, Tensor]:
        """Weights for `model.safetensors`, perhaps sharded; if empty, the file is not written."""


class ModelState:
    """Content of a checkpoint: a model, its optimizer, and its EMA if there is one."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        ema: ExponentialMovingAverage | None = None,
    ) -> None:
        self._model, self._optimizer, self._ema = model, optimizer, ema

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "model": get_model_state_dict(self._model),
            "optimizer": get_optimizer_state_dict(self._model, self._optimizer),
        }
        if self._ema:
            found |= {"ema": self._ema.weights, "ema_updates": self._ema.updates}
        return found

    def restore(self, state: dict[str, Any]) -> None:
        set_model_state_dict(self._model, state["model"])
        set_optimizer_state_dict(self._model, self._optimizer, state["optimizer"])
        if self._ema:
            self._ema.updates = state["ema_updates"]

    def weights(self) -> dict[str, Tensor]:
        return self._ema.weights if self._ema else {}


class Checkpointer:
    """Saves and restores one run; every process calls the same methods in the same order.

    Args:
        content: what is saved and restored.
        keep: number of newest checkpoints to keep, beside the one with the lowest validation loss.
        background: `save` returns after everything is copied; `wait` and `check` report errors.
    """

    def __init__(
        self, run: Path, world: World, content: Content, keep: int, background: bool = False
    ) -> None:
        self._run, self._world = run, world
        self._content, self._keep = content, keep
        self._loaded, self._saved = "", set[str]()
        self._background = BackgroundSave(world) if background else None
        self._saving: Path | None = None

    def save(self, step: int, description: dict[str, Any], valid_loss: float | None = None) -> Path:
        """Write the checkpoint after `step` finished steps, and let `latest` name it.

        Args:
            description: content of `model.json`; `step` and `valid_loss` are added.
            valid_loss: validation loss of the EMA weights at this step; None without a validation.

        Raises:
            AttuneError: the checkpoint cannot be written; finished ones are unchanged.
        """
        folder = self._run / "checkpoints" / f"step-{step:08d}"
        unfinished = folder.with_name(folder.name + ".partial")
        self.wait()
        try:
            on_first(partial(_in_one_line, partial(self._clear, unfinished)), self._world)
            state = self._content.state() | {"step": step}
            if not self._background:
                with quiet():
                    dcp.save(
                        state, checkpoint_id=unfinished / "state", no_dist=self._world.size == 1
                    )
            weights = self._average()
            document = description | {"step": step}
            if valid_loss is not None:
                document["valid_loss"] = valid_loss
            finish = partial(self._finish, unfinished, folder, weights, document)
            if self._background:
                self._saving = folder
                self._background.start(state, unfinished / "state", finish)
                return folder
            on_first(partial(_in_one_line, finish), self._world)
        except (Exception, CheckpointException) as error:
            self._give_up(folder, error)
        return folder

    def check(self) -> None:
        """To be called between steps.

        Raises:
            AttuneError: this process's background write has failed.
        """
        if self._background and self._saving:
            try:
                self._background.check()
            except (Exception, CheckpointException) as error:
                self._give_up(self._saving, error)

    def wait(self) -> None:
        """Wait until the background write has finished on every process.

        Raises:
            AttuneError: on all processes, if the write failed on one of them.
        """
        folder, self._saving = self._saving, None
        if self._background and folder:
            try:
                on_all(partial(_in_one_line, self._background.wait), self._world)
            except AttuneError as error:
                self._give_up(folder, error)

    def _give_up(self, folder: Path, error: BaseException) -> NoReturn:
        reason = innermost(error)
        with suppress(OSError):
            # PyTorch's archive writer hides the system's error, so check for a full disk here.
            if shutil.disk_usage(folder.parent).free < _FULL:
                reason = f"{os.strerror(errno.ENOSPC)} ({reason})"
        if self._world.is_first:
            shutil.rmtree(folder.with_name(folder.name + ".partial"), ignore_errors=True)
        raise AttuneError(
            f"checkpoint {folder}: cannot be saved: {reason}; earlier checkpoints are complete: "
            "make room and rerun the same command, which resumes from the newest complete one"
        ) from error

    def _average(self) -> dict[str, Tensor]:
        """The EMA weights, not sharded, in main memory; only the first process gets any."""
        copied = self._background is not None  # training changes the EMA while it is written
        weights: dict[str, Tensor] = {}
        for name, shared in self._content.weights().items():
            weight = full(shared)
            if self._world.is_first:
                weights[name] = weight.to("cpu", copy=copied)
        return weights

    def resume(self, folders: list[Path]) -> int:
        """Resume from the first of `folders` that can be loaded; returns its finished steps.

        Damaged checkpoints are skipped and reported, a line each.  If one was skipped, `latest` is
        set to the loaded checkpoint, so that generation and later starts use it too.

        Raises:
            DamagedCheckpoint: none of `folders` can be loaded; the error describes the first.
        """
        damaged: list[DamagedCheckpoint] = []
        for folder in folders:
            try:
                done = self.load(folder)
            except DamagedCheckpoint as error:
                damaged.append(error)
                continue
            if damaged and self._world.is_first:
                for one in damaged:
                    print(f"warning: {one.reason}", file=sys.stderr)
                print(f"warning: going back to {folder}", file=sys.stderr, flush=True)
                write_atomically(self._run / "latest", folder.name + "\n")
            return done
        if damaged:
            raise damaged[0]
        return 0

    def load(self, folder: Path) -> int:
        """Restore the run in place; returns the number of finished steps.

        Raises:
            DamagedCheckpoint: on all processes, if one of them cannot load it.
        """
        state: dict[str, Any] = self._content.state() | {"step": 0}

        def read() -> None:
            if reason := what_is_missing(folder):
                raise AttuneError(reason)
            try:
                with quiet():
                    load_state(state, folder / "state", no_dist=self._world.size == 1)
            except (Exception, CheckpointException) as error:  # a damaged pickle can raise anything
                raise AttuneError(f"cannot be loaded: {innermost(error)}") from error

        try:
            on_all(read, self._world)
        except AttuneError as error:
            raise DamagedCheckpoint(folder, str(error)) from error
        self._content.restore(state)
        self._loaded = folder.name
        return int(state["step"])

    def _clear(self, unfinished: Path) -> None:
        """Make the folder for a new checkpoint; delete what killed runs left half-written."""
        for left in unfinished.parent.glob("*.partial"):
            shutil.rmtree(left, ignore_errors=True)
        unfinished.mkdir(parents=True)

    def _finish(
        self, unfinished: Path, folder: Path, weights: dict[str, Tensor], document: dict[str, Any]
    ) -> None:
        if weights:
            save_file(weights, unfinished / "model.safetensors")
            as_any_file(unfinished / "model.safetensors")
            to_disk(unfinished / "model.safetensors")
        (unfinished / "model.json").write_text(json.dumps(document, indent=2) + "\n")
        for path in (unfinished / "model.json", unfinished):
            to_disk(path)
        shutil.rmtree(folder, ignore_errors=True)  # exists if the run resumed from an earlier one
        unfinished.rename(folder)
        write_atomically(self._run / "latest", folder.name + "\n")
        self._saved.add(folder.name)
        self._prune()

    def _prune(self) -> None:
        """Keep the newest valid checkpoints, and the best.

        A run that went back from a damaged step 10 to step 8, and now saves step 9, still has the
        folder of 10.  That folder must not count as kept, or the damaged 10 would push out the good
        8.  A checkpoint is valid if it is not later than the loaded one, or this process saved it.
        """
        finished = finished_checkpoints(self._run)
        valid = [f for f in finished if f.name <= self._loaded or f.name in self._saved]
        kept = valid[-self._keep :]
        losses = {folder: loss for folder in valid if (loss := _valid_loss(folder)) is not None}
        if losses:
            best = min(losses, key=losses.__getitem__)
            write_atomically(self._run / "best", best.name + "\n")
            kept.append(best)
        for folder in finished:
            if folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)


def _in_one_line(action: Callable[[], None]) -> None:
    """Run an action; any error of it becomes an `AttuneError` of one line."""
    try:
        action()
    except (Exception, CheckpointException) as error:
        raise AttuneError(innermost(error)) from error


def _valid_loss(folder: Path) -> float | None:
    """The validation loss that a checkpoint was saved with, if it is a number."""
    try:
        loss = json.loads((folder / "model.json").read_text()).get("valid_loss")
    except (OSError, ValueError, AttributeError):
        return None
    return loss if isinstance(loss, float) and math.isfinite(loss) else None
