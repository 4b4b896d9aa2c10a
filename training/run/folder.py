"""Whose folder is it: a run goes on under the config that it was started with, or not at all.

`config.json` also keeps the recipe's paths: a run's folder alone then tells where its codec, its
text encoder and its shards lie.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.config import Recipe
from common.errors import AttuneError
from training.distributed import World, on_first
from training.run.files import write_atomically

_MAY_CHANGE = {
    "lm.model.size",  # what it stands for is compared
    "lm.micro_batch",
    "lm.reduce_micro_batches",
    "lm.activation_checkpointing",
    "lm.compile",
    "lm.sharding",
    "lm.shard_size",
    "lm.deterministic",
    "lm.threads",
    "lm.prefetch",
    "lm.log_every",
    "lm.checkpoint_every",
    "lm.async_checkpoint",
    "lm.keep",
    "lm.keep_best",
    "lm.non_finite.skip",
    "lm.bad_samples",
    "lm.valid_every",
    "lm.valid_batches",
    "lm.samples.every",
    "lm.samples.prompts",
    "lm.samples.duration_s",
    "lm.wandb",
}
"""Keys that do not decide what is trained, beyond rounding."""


@contextmanager
def writing(folder: Path, key: str) -> Iterator[None]:
    """Around work on the files of a folder that `key` of the recipe names.

    Raises:
        AttuneError: it cannot be made, or written into.
    """
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise AttuneError(
            f"{key}: {folder} cannot be written: {error.strerror}{where}; name another folder, or "
            "put that right and rerun the same command"
        ) from error


def check_writable(folder: Path, key: str) -> None:
    """Know before the work whether its folder can be made, or written into; nothing is made.

    Raises:
        AttuneError: it cannot, as far as can be told without trying.
    """
    with writing(folder, key):
        there = folder
        while not there.exists():
            there = there.parent
        if not there.is_dir():
            reason = errno.ENOTDIR
        elif not os.access(there, os.W_OK | os.X_OK):
            read_only = os.statvfs(there).f_flag & os.ST_RDONLY
            reason = errno.EROFS if read_only else errno.EACCES
        else:
            return
        raise OSError(reason, os.strerror(reason), str(there))


def claim(run: Path, started: dict[str, Any], world: World, fresh: bool) -> list[Path]:
    """Make the folder this run's, and find the checkpoints to go on from, newest first.

    Args:
        run: folder of the run.
        started: what decides the training; kept as `config.json`.
        fresh: delete what the run has so far.

    Raises:
        AttuneError: the run was started with another config, or the folder cannot be written.
    """
    return on_first(lambda: _claim(run, started, fresh), world)  # all wait for the first


def recorded_precision(run: Path, world: World, fresh: bool) -> str | None:
    """What a run that can go on was begun with; None if it begins.

    Raises:
        AttuneError: its `config.json` is damaged.
    """

    def read() -> str | None:
        path = run / "config.json"
        if fresh or not path.is_file() or not candidates(run):
            return None
        lm = _read(path).get("lm")
        found = lm.get("precision") if isinstance(lm, dict) else None
        return found if isinstance(found, str) else None

    return on_first(read, world)


def _claim(run: Path, started: dict[str, Any], fresh: bool) -> list[Path]:
    path = run / "config.json"
    _refuse_imported(path, run)
    with writing(run, "run_dir"):
        if fresh:
            for part in ("checkpoints", "tb", "samples"):
                shutil.rmtree(run / part, ignore_errors=True)
            for name in ("latest", "best", "log.jsonl", "config.json"):
                (run / name).unlink(missing_ok=True)
        run.mkdir(parents=True, exist_ok=True)
        found = candidates(run)
        if path.is_file() and found:
            _check_same(_read(path), started, run)
        write_atomically(path, json.dumps(started, indent=2) + "\n")
    return found


def _refuse_imported(path: Path, run: Path) -> None:
    """An imported model has no state to go on from, and is not ours to delete."""
    try:
        imported = "imported" in json.loads(path.read_text())
    except (OSError, ValueError, TypeError):
        return
    if imported:
        raise AttuneError(
            f"{run} holds an imported model; to train on from it, name another run and begin with "
            f"its weights: lm.run=fine-tuned lm.init_from={run}"
        )


def find_checkpoint(source: Path) -> tuple[Path, Path]:
    """The run and the checkpoint that a path names: a run's folder, or a checkpoint's.

    Raises:
        AttuneError: neither.
    """
    if (source / "model.json").is_file():
        source = source.resolve()
        return source.parent.parent, source
    checkpoint = latest_checkpoint(source)
    if checkpoint is None:
        raise AttuneError(
            f"{source}: no trained model there; name a run's folder (it holds `latest`) or a "
            "checkpoint's (it holds model.json)"
        )
    return source, checkpoint


def as_recorded(recipe: Recipe) -> dict[str, Any]:
    """What `config.json` keeps of a recipe; its paths may change while a run goes on."""
    kept = {"name", "run_dir", "data_dir", "seed", "sample_rate", "codec", "text_encoder"}
    return recipe.model_dump(mode="json", include=kept | {"sampling"})


def recorded_recipe(run: Path) -> Recipe:
    """The recipe that a run was last started under, as far as it was kept.

    Raises:
        AttuneError: no run there, or an older one, which kept none.
    """
    path = run / "config.json"
    if not path.is_file():
        raise AttuneError(f"{run}: no run there (no config.json); name its recipe with --config")
    try:
        return Recipe(**_read(path)["recipe"], source_file=str(path))
    except (KeyError, TypeError, ValueError) as error:
        raise AttuneError(
            f"{path} does not say which codec and text encoder the run belongs to; name its "
            "recipe with --config"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise AttuneError(
            f"{path} is damaged, so nobody can tell what this run was started with; name another "
            "run (lm.run=...) or start this one over with --fresh"
        )
    return found


def _check_same(before: dict[str, Any], now: dict[str, Any], run: Path) -> None:
    flat = _flat(now)
    differing = [
        (key, old, flat.get(key))
        for key, old in _flat(before).items()
        if old != flat.get(key) and key not in _MAY_CHANGE and not key.startswith("recipe.")
    ]
    if not differing:
        return
    key, old, new = differing[0]
    remedy = "name another run (lm.run=...)"
    if [name for name, *_ in differing] == ["lm.steps"]:
        remedy = (
            "learning rates follow from lm.steps, so its weights go on in another run with a "
            f"schedule of its own (lm.run=NAME lm.init_from={run})"
        )
    raise AttuneError(
        f"run {run} was started with {key} = {old!r}, now it is {new!r}; {remedy} or start this "
        "one over with --fresh"
    )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and key != "datasets":
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


class DamagedCheckpoint(AttuneError):
    """A checkpoint that cannot be gone on from."""

    def __init__(self, folder: Path, reason: str) -> None:
        self.reason = f"checkpoint {folder}: {reason}"
        latest = folder.parent.parent / "latest"
        super().__init__(
            f"{self.reason}; name an earlier one in {latest} or start over with --fresh"
        )


def candidates(run: Path) -> list[Path]:
    """Checkpoints to go on from, newest first: what `latest` names, and finished ones before it."""
    try:
        name = (run / "latest").read_text().strip()
    except FileNotFoundError:
        return []
    earlier = [folder for folder in finished_checkpoints(run) if folder.name < name]
    return [run / "checkpoints" / name, *reversed(earlier)]


def latest_checkpoint(run: Path) -> Path | None:
    """The newest finished checkpoint of a run, if there is one.

    Raises:
        AttuneError: `latest` names a folder that is gone.
    """
    found = candidates(run)
    if not found:
        return None
    reason = what_is_missing(found[0])
    if reason:
        raise DamagedCheckpoint(found[0], reason)
    return found[0]


def finished_checkpoints(run: Path) -> list[Path]:
    """Folders that were renamed when they were whole, oldest first."""
    return sorted((run / "checkpoints").glob("step-????????"))


def what_is_missing(folder: Path) -> str | None:
    """What is missing in a checkpoint at first sight."""
    if not folder.is_dir():
        named = f"{folder.parent.parent / 'latest'} names {folder.name}"
        return f"{named}, which is not in {folder.parent}"
    return None if (folder / "model.json").is_file() else "has no model.json: it is not whole"
