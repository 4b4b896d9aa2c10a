"""Checkpoints of a training run, the language model's and the codec's.

    RUN/config.json              what the run was started with
    RUN/latest                   name of the newest finished checkpoint, replaced atomically
    RUN/best                     name of the one with the lowest validation loss, if asked for
    RUN/checkpoints/step-00001000/
        state/                   all that training changes (PyTorch DCP: reshards on load)
        model.safetensors        EMA weights, whole: all that generation needs (not of a codec)
        model.json               architecture, codec, text encoder, rates, step, valid_loss

The order of operations is what makes a kill at any time harmless:

1. every file is written into `step-NNNNNNNN.partial/` and flushed to the disk;
2. the folder is renamed: a folder without `.partial` is whole;
3. `latest` is replaced, so it always names a whole folder;
4. only then older checkpoints go.

A kill or a full disk before 3 leaves `latest` at the earlier checkpoint, still there.  If a
checkpoint is damaged later, the run resumes from the one before.
"""

from __future__ import annotations

import errno
import functools
import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
import torch.distributed as dist
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
from training.checkpoint.load import Told, innermost, quiet
from training.checkpoint.plain_state import load_state
from training.distributed import World, from_first, full, gather_objects
from training.ema import ExponentialMovingAverage
from training.run.files import as_any_file, to_disk, write_atomically
from training.run.folder import DamagedCheckpoint, finished_checkpoints, what_is_missing

_FULL = 1 << 20
"""Bytes left on a disk that is called full."""


class Content(Protocol):
    """What a checkpoint holds of a run."""

    def state(self) -> dict[str, Any]:
        """All that training changes, by name: tensors, which are loaded in place, and numbers."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take in a `state` that was loaded."""

    def weights(self) -> dict[str, Tensor]:
        """Weights for `model.safetensors`, perhaps sharded; none, and there is no such file."""


class ModelState:
    """A model, its optimizer, and its average if there is one."""

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
    """Saves and restores one run; every process calls the same methods in the same order."""

    def __init__(
        self,
        run: Path,
        world: World,
        content: Content,
        keep: int,
        keep_best: bool = False,
        background: bool = False,
    ) -> None:
        """
        Args:
            content: what is written and restored.
            keep: newest checkpoints that stay.
            keep_best: the one with the lowest validation loss stays too.
            background: `save` returns once everything is copied; `wait` and `check` report errors.
        """
        self._run = run
        self._world = world
        self._content = content
        self._keep = keep
        self._keep_best = keep_best
        self._loaded: str | None = None
        self._saved: set[str] = set()
        self._background = BackgroundSave(world) if background else None
        self._saving: Path | None = None

    def save(self, step: int, description: dict[str, Any], valid_loss: float | None = None) -> Path:
        """Write the checkpoint of `step` finished steps and point `latest` to it.

        Args:
            description: content of `model.json`, which gets `step` and `valid_loss` added.
            valid_loss: of this very step's average, if it was validated.

        Raises:
            AttuneError: it cannot be written; no finished one is touched then.
        """
        folder = self._run / "checkpoints" / f"step-{step:08d}"
        partial = folder.with_name(folder.name + ".partial")
        self.wait()
        try:
            self._on_first(lambda: self._clear(partial))
            state = self._content.state() | {"step": step}
            if not self._background:
                with quiet():
                    dcp.save(state, checkpoint_id=partial / "state", no_dist=self._world.size == 1)
            weights = self._average()
            document = description | {"step": step}
            if valid_loss is not None:
                document["valid_loss"] = valid_loss
            finish = functools.partial(self._finish, partial, folder, weights, document)
            if self._background:
                self._saving = folder
                self._background.start(state, partial / "state", finish)
                return folder
            self._on_first(finish)
        except (Exception, CheckpointException) as error:
            self._give_up(folder, error)
        self._barrier()
        return folder

    def check(self) -> None:
        """Between steps: raise if what this process writes in the background has failed.

        Raises:
            AttuneError: it has.
        """
        if self._background and self._saving:
            try:
                self._background.check()
            except (Exception, CheckpointException) as error:
                self._give_up(self._saving, error)

    def wait(self) -> None:
        """Wait until what is written in the background is finished, on every process.

        Raises:
            AttuneError: on all processes, if one of them cannot write it.
        """
        if not self._background or not self._saving:
            return
        folder, self._saving = self._saving, None
        reason: str | None = None
        cause: BaseException | None = None
        try:
            self._background.wait()
        except (Exception, CheckpointException) as error:
            reason, cause = innermost(error), error
        reasons = [found for found in gather_objects(reason, self._world) if found]
        if reasons:
            self._give_up(folder, cause or Told(reasons[0]))

    def _give_up(self, folder: Path, error: BaseException) -> NoReturn:
        reason = innermost(error)
        with suppress(OSError):
            # PyTorch's archive writer does not pass on what the system said.
            if shutil.disk_usage(folder.parent).free < _FULL:
                reason = f"{os.strerror(errno.ENOSPC)} ({reason})"
        if self._world.is_first:
            shutil.rmtree(folder.with_name(folder.name + ".partial"), ignore_errors=True)
        raise AttuneError(
            f"checkpoint {folder}: cannot be saved: {reason}; earlier ones are "
            "whole: make room and rerun the same command, which resumes from the last"
        ) from error

    def _average(self) -> dict[str, Tensor]:
        """The average, whole, in the first process's memory; copied, if training continues
        meanwhile."""
        copied = self._background is not None
        weights: dict[str, Tensor] = {}
        for name, shared in self._content.weights().items():
            weight = full(shared)
            if self._world.is_first:
                weights[name] = weight.to("cpu", copy=copied)
        return weights

    def resume(self, folders: list[Path]) -> int:
        """Resume from the first of `folders` that can be loaded; returns its finished steps.

        Each one that cannot is reported in a line, and `latest` then names the one found, so that
        the log and later starts go by it as well.

        Raises:
            DamagedCheckpoint: there are some, and none can be loaded; reports the first.
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
        reason, cause = what_is_missing(folder), None
        if not reason:
            try:
                with quiet():
                    load_state(state, folder / "state", no_dist=self._world.size == 1)
            except (Exception, CheckpointException) as error:  # whatever a damaged pickle may raise
                reason, cause = f"cannot be loaded: {innermost(error)}", error
        reasons = [found for found in gather_objects(reason, self._world) if found]
        if reasons:
            raise DamagedCheckpoint(folder, reasons[0]) from cause
        self._content.restore(state)
        self._loaded = folder.name
        return int(state["step"])

    def _clear(self, partial: Path) -> None:
        """Room for a new checkpoint: what killed runs left half-written goes."""
        for left in partial.parent.glob("*.partial"):
            shutil.rmtree(left, ignore_errors=True)
        partial.mkdir(parents=True)

    def _finish(
        self, partial: Path, folder: Path, weights: dict[str, Tensor], document: dict[str, Any]
    ) -> None:
        if weights:
            save_file(weights, partial / "model.safetensors")
            as_any_file(partial / "model.safetensors")
            to_disk(partial / "model.safetensors")
        (partial / "model.json").write_text(json.dumps(document, indent=2) + "\n")
        for path in (partial / "model.json", partial):
            to_disk(path)
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one that the run went back behind
        partial.rename(folder)
        write_atomically(self._run / "latest", folder.name + "\n")
        self._saved.add(folder.name)
        self._prune(folder)

    def _prune(self, saved: Path) -> None:
        """Keep the newest up to `saved`, and the best.

        A run that went back from a damaged step 10 to step 8, and now saves step 9, still has the
        folder of 10.  It must not count among those kept, or the damaged 10 would push out the good
        8.  Valid are: steps up to the one loaded, and steps that this process saved.
        """
        finished = finished_checkpoints(self._run)
        valid = [folder for folder in finished if folder.name <= saved.name]
        if self._loaded is not None:
            mine = self._saved
            valid = [f for f in valid if f.name <= self._loaded or f.name in mine]
        kept = valid[-self._keep :]
        if self._keep_best:
            losses = {folder: loss for folder in valid if (loss := _valid_loss(folder)) is not None}
            if losses:
                best = min(losses, key=losses.__getitem__)
                write_atomically(self._run / "best", best.name + "\n")
                kept.append(best)
        for folder in finished:
            if folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)

    def _on_first(self, action: Callable[[], None]) -> None:
        """Run `action` on the first process; if it fails, all processes raise.

        Raises:
            Told: with the first one's reason.
        """
        reason: str | None = None
        if self._world.is_first:
            try:
                action()
            except Exception as error:  # safetensors raises its own
                reason = innermost(error)
        reason = from_first(reason, self._world)
        if reason:
            raise Told(reason)

    def _barrier(self) -> None:
        if self._world.size > 1:
            dist.barrier()


def _valid_loss(folder: Path) -> float | None:
    """The validation loss that a checkpoint was saved with, if it is a number."""
    try:
        loss = json.loads((folder / "model.json").read_text()).get("valid_loss")
    except (OSError, ValueError, AttributeError):
        return None
    return loss if isinstance(loss, float) and math.isfinite(loss) else None
