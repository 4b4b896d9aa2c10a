"""Checkpoints of a training run.

    RUN/config.json              what the run was started with
    RUN/latest                   name of the newest finished checkpoint, replaced atomically
    RUN/best                     name of the one with the lowest validation loss, if asked for
    RUN/checkpoints/step-00001000/
        state/                   weights, optimizer, EMA, step (PyTorch DCP: reshards on load)
        model.safetensors        EMA weights, whole: all that generation needs
        model.json               architecture, codec, text encoder, rates, step, valid_loss

A checkpoint is written under another name and renamed when it is whole and on the disk; `latest`
follows after, and only then older ones go.  So whatever is killed whenever, and however full the
disk, `latest` names a checkpoint that can be loaded.  Should it be damaged afterwards, the run goes
on from the one before.
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
from typing import Any, NoReturn

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
        keep_best: bool = False,
        background: bool = False,
    ) -> None:
        """
        Args:
            keep: newest checkpoints that stay.
            keep_best: the one with the lowest validation loss stays too.
            background: `save` returns once everything is copied; `wait` and `check` tell the rest.
        """
        self._run = run
        self._world = world
        self._model = model
        self._optimizer = optimizer
        self._ema = ema
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
            state = self._state() | {"step": step, "ema_updates": self._ema.updates}
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
        """Between steps: has what this process writes in the background failed?

        Raises:
            AttuneError: it has.
        """
        if self._background and self._saving:
            try:
                self._background.check()
            except (Exception, CheckpointException) as error:
                self._give_up(self._saving, error)

    def wait(self) -> None:
        """Until what is written in the background is finished, on every process.

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
            "whole: rerun the same command to go on from the last, once there is room"
        ) from error

    def _average(self) -> dict[str, Tensor]:
        """The average, whole, in the first process's memory; of all tensors copies, if training
        goes on meanwhile."""
        copied = self._background is not None
        weights: dict[str, Tensor] = {}
        for name, shared in self._ema.weights.items():
            weight = full(shared)
            if self._world.is_first:
                weights[name] = weight.to("cpu", copy=copied)
        return weights

    def resume(self, folders: list[Path]) -> int:
        """Go on from the first of `folders` that can be loaded; returns its finished steps.

        Each one that cannot is told in a line, and `latest` names the one found, so that the log
        and later starts go by it as well.

        Raises:
            DamagedCheckpoint: there are some, and none can be loaded; tells of the first.
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
        """Restore weights, optimizer and EMA in place; returns the number of finished steps.

        Raises:
            DamagedCheckpoint: on all processes, if one of them cannot load it.
        """
        state: dict[str, Any] = self._state() | {"step": 0, "ema_updates": 0}
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
        set_model_state_dict(self._model, state["model"])
        set_optimizer_state_dict(self._model, self._optimizer, state["optimizer"])
        self._ema.updates = state["ema_updates"]
        self._loaded = folder.name
        return int(state["step"])

    def _state(self) -> dict[str, Any]:
        return {
            "model": get_model_state_dict(self._model),
            "optimizer": get_optimizer_state_dict(self._model, self._optimizer),
            "ema": self._ema.weights,  # loaded in place
        }

    def _clear(self, partial: Path) -> None:
        """Room for a new checkpoint: what killed runs left half-written goes."""
        for left in partial.parent.glob("*.partial"):
            shutil.rmtree(left, ignore_errors=True)
        partial.mkdir(parents=True)

    def _finish(
        self, partial: Path, folder: Path, weights: dict[str, Tensor], document: dict[str, Any]
    ) -> None:
        save_file(weights, partial / "model.safetensors")
        as_any_file(partial / "model.safetensors")
        (partial / "model.json").write_text(json.dumps(document, indent=2) + "\n")
        for path in (partial / "model.safetensors", partial / "model.json", partial):
            to_disk(path)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        write_atomically(self._run / "latest", folder.name + "\n")
        self._saved.add(folder.name)
        self._prune(folder)

    def _prune(self, saved: Path) -> None:
        """Keep the newest up to `saved`, and the best.

        Later ones, and those between where the run went back to and what it saved since, are left
        from before it went back.
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
        """Done by the first process; if it fails, all of them do.

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
