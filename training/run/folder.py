"""The folder of a run, the language model's or the codec's: `config.json` and which checkpoints.

A run resumes under the config that it was started with, or not at all.  `config.json` also keeps
the recipe's paths, so that a run's folder is enough to find its codec, text encoder and shards.
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
    "lm.activation_checkpointing",
    "lm.compile",
    "lm.sharding",
    "lm.deterministic",
    "lm.threads",
    "lm.log_every",
    "lm.checkpoint_every",
    "lm.async_checkpoint",
    "lm.keep",
    "lm.keep_best",
    "lm.non_finite.skip",
    "lm.bad_samples",
    "lm.valid_every",
    "lm.samples.every",
    "lm.samples.prompts",
    "lm.wandb",
    "codec_training.out",
    "codec_training.threads",
    "codec_training.log_every",
    "codec_training.checkpoint_every",
    "codec_training.valid_every",
}
"""Keys that do not decide what is trained, beyond rounding."""


@contextmanager
def writing(folder: Path, key: str) -> Iterator[None]:
    """Around work on the files of a folder that `key` of the recipe names.

    Raises:
        AttuneError: the folder cannot be made, or written into.
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
    """Check before the work that a folder can be made, or written into; nothing is made.

    Raises:
        AttuneError: it cannot, as far as can be seen without trying.
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
    """Make the folder this run's, and find the checkpoints to resume from, newest first.

    Args:
        run: folder of the run.
        started: what decides the training; kept as `config.json`.
        fresh: delete what the run has so far.
        key: of the recipe, which names the run.

    Raises:
        AttuneError: the run was started with another config, or the folder cannot be written.
    """
    return on_first(lambda: _claim(run, started, fresh, key), world)  # all wait for the first


def recorded_precision(run: Path, world: World, fresh: bool, section: str = "lm") -> str | None:
    """Precision that a run which can resume was started with; None if the run is new.

    Args:
        section: of the recipe, as `config.json` keeps it.

    Raises:
        AttuneError: its `config.json` is damaged.
    """

    def read() -> str | None:
        path = run / "config.json"
        if fresh or not path.is_file() or not candidates(run):
            return None
        kept = read_config(path).get(section)
        found = kept.get("precision") if isinstance(kept, dict) else None
        return found if isinstance(found, str) else None

    return on_first(read, world)


def _claim(run: Path, started: dict[str, Any], fresh: bool, key: str) -> list[Path]:
    path = run / "config.json"
    _refuse_imported(path, run)
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


def _refuse_imported(path: Path, run: Path) -> None:
    """An imported model has no state to resume from, and is not ours to delete."""
    try:
        imported = "imported" in json.loads(path.read_text())
    except (OSError, ValueError, TypeError):
        return
    if imported:
        raise AttuneError(
            f"{run} holds an imported model; to fine-tune it, name another run and start from "
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
    """What `config.json` keeps of a recipe; its paths may change when a run resumes."""
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
        return Recipe(**read_config(path)["recipe"], source_file=str(path))
    except (KeyError, TypeError, ValueError) as error:
        raise AttuneError(
            f"{path} does not say which codec and text encoder the run belongs to; name its "
            "recipe with --config"
        ) from error


def read_config(path: Path) -> dict[str, Any]:
    """Content of a run's `config.json`.

    Raises:
        AttuneError: it is damaged.
    """
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise AttuneError(
            f"{path} is damaged, so nobody can tell what this run was started with; name another "
            "run or start this one over with --fresh"
        )
    return found


def differing(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys that decide the training and differ between two `config.json`: values before and now."""
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
            "learning rates follow from lm.steps, so continue its weights in another run with a "
            f"schedule of its own (lm.run=NAME lm.init_from={run})"
        )
    raise AttuneError(
        f"run {run} was started with {key} = {old!r}, now it is {new!r}{more}; {remedy} or start "
        "this one over with --fresh"
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
            f"{self.reason}; name an earlier one in {latest} or start over with --fresh"
        )


def candidates(run: Path) -> list[Path]:
    """Checkpoints to resume from, newest first: what `latest` names, and finished ones before."""
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
