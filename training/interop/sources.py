"""Sources of imported weights: a folder, a file, or a Hugging Face hub id.

Reading never runs code from a file: safetensors, and pickles with `weights_only=True`.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from common.errors import AttuneError, one_line
from common.hub import hub_snapshot

AUDIOCRAFT_FILES = ("state_dict.bin", "compression_state_dict.bin")
"""File names of audiocraft's two checkpoints: language model and codec."""

_SMALL = ["*.json", "*.txt", "*.model"]
_BAD_INPUT = (
    OSError, EOFError, ImportError, LookupError, TypeError, ValueError, AttributeError,
    RuntimeError, SafetensorError,
)  # fmt: skip
_WEIGHTS = (["model*.safetensors"], ["pytorch_model*.bin"])


def fetch(source: str) -> Path:
    """The local file or folder of a source; a hub id is downloaded first.

    From a hub repository with a `config.json` only Hugging Face's files are fetched, from any other
    only audiocraft's.

    Raises:
        AttuneError: there is no such source.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    if source.startswith(("/", ".", "~")) or source.count("/") != 1:
        raise AttuneError(f"{source}: no such file or folder, and not a hub id (OWNER/NAME)")
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = hub_snapshot(source, _SMALL)
        if not (folder / "config.json").is_file():
            return hub_snapshot(source, AUDIOCRAFT_FILES)
        for patterns in _WEIGHTS:
            folder = hub_snapshot(source, _SMALL + patterns)
            if any(folder.glob(patterns[0])):
                break
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise AttuneError(
            f"{source}: no such file or folder, and fetching it from the Hugging Face hub failed "
            f"({type(error).__name__}); check the name and the network, or name a local folder"
        ) from error
    return folder


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Report an error of a library that reads a source in one line, after `what`."""
    try:
        yield
    except _BAD_INPUT as error:
        raise AttuneError(f"{what}: {one_line(error)}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a Hugging Face folder; empty if there is none.

    Raises:
        AttuneError: it is not a JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        return {}
    with refusing(f"{path}: cannot be read as JSON"):
        config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise AttuneError(f"{path}: holds a {type(config).__name__}, expected an object")
    return config


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if the file is missing or holds no JSON object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def check_weights(found: dict[str, Tensor], expected: dict[str, Tensor], where: str) -> None:
    """Refuse weights that do not fit a model.

    Args:
        found: named tensors.
        expected: tensors of the right names and shapes, of any values.
        where: the source and its part, for messages.

    Raises:
        AttuneError: weights are missing, unknown, or of other shapes.
    """
    for what, names in (
        ("lacks", expected.keys() - found.keys()),
        ("has unknown", found.keys() - expected.keys()),
    ):
        if names:
            raise AttuneError(
                f"{where} {what} {len(names)} weights ({min(names)}, ...); configuration and "
                "weights do not belong together, or the architecture is not supported"
            )
    for name, value in found.items():
        if value.shape != expected[name].shape:
            raise AttuneError(
                f"{where}: {name} is {tuple(value.shape)}, its configuration makes it "
                f"{tuple(expected[name].shape)}"
            )


def read_weights(folder: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a Hugging Face folder whose names begin with `prefix`, without the prefix.

    They are read from safetensors if there are any, else from `pytorch_model*.bin`; whole or in
    shards.

    Raises:
        AttuneError: there are no weights, or they cannot be read.
    """
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        whole, index = folder / f"{stem}.{suffix}", folder / f"{stem}.{suffix}.index.json"
        if index.is_file() or whole.is_file():
            files = _shards(index) if index.is_file() else [whole]
            return {
                name.removeprefix(prefix): value
                for file in files
                for name, value in _read_tensors(file, prefix).items()
            }
    raise AttuneError(f"{folder}: no model.safetensors or pytorch_model.bin there")


def load_pickle(path: Path) -> Any:
    """Read a `torch.save` file without running code from it.

    Raises:
        AttuneError: it cannot be read, or holds more than tensors and plain values.
    """
    try:
        with refusing(f"{path}: cannot be read"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "omegaconf" in str(error):
            raise AttuneError(
                f"{path}: its configuration is a pickled omegaconf object, and reading one can run "
                "code; if you trust the file, convert it with audiocraft.utils.export "
                "(export_encodec or export_lm), which stores the configuration as text"
            ) from error
        raise AttuneError(
            f"{path}: not a checkpoint of tensors and plain values, and reading anything else can "
            f"run code: {one_line(error)}"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Hide Hugging Face's progress bars."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()


def _shards(index: Path) -> list[Path]:
    with refusing(f"{index}: not an index of weights"):
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise AttuneError(f"{index}: names {name!r}, which is not a file beside it")
    return [index.parent / name for name in names]


def _read_tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    if path.suffix == ".bin":
        found = load_pickle(path)
        if not isinstance(found, dict):
            raise AttuneError(f"{path}: holds a {type(found).__name__}, expected named tensors")
        return {name: value for name, value in found.items() if name.startswith(prefix)}
    with refusing(f"{path}: cannot be read"), safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name: file.get_tensor(name) for name in names}
