"""The folder of a run (language model or codec): `config.json`, and which checkpoints there are.

A run only resumes with the config that it was started with.  `config.json` also keeps the recipe's
paths, so that a run's folder is enough to find its codec, text encoder and shards.
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
    "lm.model.size",  # the sizes it stands for are compared
    "lm.micro_batch", "lm.activation_checkpointing", "lm.compile", "lm.sharding", "lm.threads",
    "lm.bad_samples", "lm.skip_non_finite", "lm.log_every", "lm.valid_every", "lm.samples",
    "lm.wandb", "lm.checkpoint_every", "lm.async_checkpoint", "lm.keep",
    "codec_training.out", "codec_training.threads", "codec_training.log_every",
    "codec_training.checkpoint_every", "codec_training.valid_every",
}  # fmt: skip
"""Keys that change nothing of the training result, except for rounding."""


@contextmanager
def writing(folder: Path, key: str) -> Iterator[None]:
    """Around work on the files of a folder; `key` of the recipe names the folder.

    Raises:
        AttuneError: the folder cannot be made or written into.
    """
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise AttuneError(
            f"{key}: {folder} cannot be written: {error.strerror}{where}; name another folder, or "
            "correct this and rerun the same command"
        ) from error


def check_writable(folder: Path, key: str) -> None:
    """Check that a folder can be made or written into, without making anything.

    Raises:
        AttuneError: as far as can be seen without trying, it cannot.
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


def claim(
    run: Path, started: dict[str, Any], world: World, fresh: bool, key: str = "lm.run"
) -> list[Path]:
    """Write `config.json` into the run's folder; returns checkpoints to resume from, newest first.

    Args:
        run: folder of the run.
        started: settings that decide the training; kept as `config.json`.
        fresh: delete the files of the run first.
        key: key of the recipe that names the run.

    Raises:
        AttuneError: the run was started with another config, or the folder cannot be written.
    """

    def claim_folder() -> list[Path]:
        path = run / "config.json"
        if path.is_file() and '"imported":' in path.read_text():
            # It has no state to resume from, and no run may delete it.
            raise AttuneError(
                f"{run} holds an imported model; to fine-tune it, name another run and start from "
                f"its weights: lm.run=fine-tuned lm.init_from={run}"
            )
        with writing(run, "run_dir" if key == "lm.run" else key):
            if fresh:
                for part in ("checkpoints", "tb", "samples"):
                    shutil.rmtree(run / part, ignore_errors=True)
                for name in ("latest", "best", "log.jsonl", "config.json"):
                    (run / name).unlink(missing_ok=True)
            run.mkdir(parents=True, exist_ok=True)
            found = candidates(run)
            if path.is_file() and found:
                _check_same(read_config(path), started, run, key)
            write_atomically(path, json.dumps(started, indent=2) + "\n")
        return found

    return on_first(claim_folder, world)


def recorded_precision(run: Path, world: World, fresh: bool, section: str = "lm") -> str | None:
    """Precision that a run was started with; None if the run is new.

    Args:
        section: the recipe's section in `config.json`.

    Raises:
        AttuneError: the run's `config.json` is damaged.
    """

    def read() -> str | None:
        path = run / "config.json"
        if fresh or not path.is_file() or not candidates(run):
            return None
        kept: dict[str, Any] = read_config(path).get(section, {})
        return kept.get("precision")

    return on_first(read, world)


def find_checkpoint(source: Path) -> tuple[Path, Path]:
    """Run and checkpoint of a path, which is the folder of a run or of a checkpoint.

    Raises:
        AttuneError: the path is neither.
    """
    if (source / "model.json").is_file():
        source = source.resolve()
        return source.parent.parent, source
    checkpoint = latest_checkpoint(source)
    if checkpoint is None:
        raise AttuneError(
            f"{source}: no trained model there; name the folder of a run (it has `latest`) or of "
            "a checkpoint (it has model.json)"
        )
    return source, checkpoint


def as_recorded(recipe: Recipe) -> dict[str, Any]:
    """The part of a recipe that `config.json` keeps; it may change when a run resumes."""
    kept = {"name", "run_dir", "data_dir", "seed", "sample_rate", "codec", "text_encoder"}
    found = recipe.model_dump(mode="json", include=kept | {"sampling"})
    typed = [one.model_dump(mode="json") for one in recipe.overrides if one.keys[0] == "sampling"]
    return found | ({"overrides": typed} if typed else {})


def recorded_recipe(run: Path) -> Recipe:
    """The recipe of a run's last start, as far as `config.json` keeps it.

    Raises:
        AttuneError: no run there, or its `config.json` keeps no recipe.
    """
    path = run / "config.json"
    if not path.is_file():
        raise AttuneError(f"{run}: no run there (no config.json); name its recipe with --config")
    try:
        return Recipe(**read_config(path)["recipe"], source_file=str(path))
    except (KeyError, TypeError, ValueError) as error:
        raise AttuneError(
            f"{path} has no valid `recipe`, so codec and text encoder of the run are unknown; "
            "name its recipe with --config"
        ) from error


def read_config(path: Path) -> dict[str, Any]:
    """Content of a run's `config.json`.

    Raises:
        AttuneError: the file is damaged.
    """
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise AttuneError(
            f"{path} is damaged, so the settings of this run are unknown; name another run, or "
            "start this one from scratch with --fresh"
        )
    return found


def differing(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys that decide the training and differ between two `config.json`, with both values."""
    flat = _flat(now)
    return {
        key: (old, flat.get(key))
        for key, old in _flat(before).items()
        if old != flat.get(key) and key not in _MAY_CHANGE and not key.startswith("recipe.")
    }


def _check_same(before: dict[str, Any], now: dict[str, Any], run: Path, named_by: str) -> None:
    found = differing(before, now)
    if not found:
        return
    (key, (old, new)), *others = found.items()
    more = f" (and {', '.join(name for name, _ in others)} differ)" if others else ""
    remedy = f"name another run ({named_by}=...)"
    if list(found) == ["lm.steps"]:
        remedy = (
            "learning rates depend on lm.steps, so start another run with its own schedule from "
            f"these weights (lm.run=NAME lm.init_from={run})"
        )
    raise AttuneError(
        f"run {run} was started with {key} = {old!r}, now it is {new!r}{more}; {remedy}, or start "
        "this run from scratch with --fresh"
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
    """A checkpoint that a run cannot resume from."""

    def __init__(self, folder: Path, reason: str) -> None:
        self.reason = f"checkpoint {folder}: {reason}"
        latest = folder.parent.parent / "latest"
        super().__init__(
            f"{self.reason}; write the name of an earlier one into {latest}, or start from scratch "
            "with --fresh"
        )


def candidates(run: Path) -> list[Path]:
    """Checkpoints to resume from: the one that `latest` names, then earlier ones, newest first."""
    try:
        name = (run / "latest").read_text().strip()
    except FileNotFoundError:
        return []
    earlier = [folder for folder in finished_checkpoints(run) if folder.name < name]
    return [run / "checkpoints" / name, *reversed(earlier)]


def latest_checkpoint(run: Path) -> Path | None:
    """The newest finished checkpoint of a run, if there is one.

    Raises:
        AttuneError: `latest` names a folder that is missing or damaged.
    """
    found = candidates(run)
    if not found:
        return None
    reason = what_is_missing(found[0])
    if reason:
        raise DamagedCheckpoint(found[0], reason)
    return found[0]


def finished_checkpoints(run: Path) -> list[Path]:
    """Folders of complete checkpoints, oldest first."""
    return sorted((run / "checkpoints").glob("step-????????"))


def what_is_missing(folder: Path) -> str | None:
    """A reason why a folder is no complete checkpoint; None if it looks complete."""
    if not folder.is_dir():
        named = f"{folder.parent.parent / 'latest'} names {folder.name}"
        return f"{named}, which is not in {folder.parent}"
    return None if (folder / "model.json").is_file() else "has no model.json, so it is not complete"
