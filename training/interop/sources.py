"""Where imported weights come from: a folder, a file, or a Hugging Face hub id.

Nothing that is read here runs code: safetensors, and pickles with `weights_only=True`.
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
"""Names of audiocraft's two checkpoints: language model and codec."""

_SMALL = ["*.json", "*.txt", "*.model"]
_WEIGHTS = (["model*.safetensors"], ["pytorch_model*.bin"])


def fetch(source: str) -> Path:
    """The local file or folder behind a source; a hub id is downloaded first.

    Of a hub repository with a `config.json` only Hugging Face's files are fetched, of any other
    only audiocraft's.

    Raises:
        AttuneError: nothing there by that name.
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
            f"{source}: no such file or folder, and the Hugging Face hub did not give it "
            f"({type(error).__name__}); check the name and the network, or name a local folder"
        ) from error
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a Hugging Face folder; empty if there is none.

    Raises:
        AttuneError: it is not a JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AttuneError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise AttuneError(f"{path}: holds a {type(config).__name__}, expected an object")
    return config


def read_weights(folder: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a Hugging Face folder whose names begin with `prefix`, which is cut off.

    safetensors if there are any, else `pytorch_model*.bin`; whole or in shards.

    Raises:
        AttuneError: no weights there, or they cannot be read.
    """
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{suffix}.index.json"
        if index.is_file():
            return _read_all(_shards(index), prefix)
        if (folder / f"{stem}.{suffix}").is_file():
            return _read_all([folder / f"{stem}.{suffix}"], prefix)
    raise AttuneError(f"{folder}: no model.safetensors or pytorch_model.bin there")


def load_pickle(path: Path) -> Any:
    """A `torch.save` file, without running any code of it.

    Raises:
        AttuneError: it cannot be read, or holds more than tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "omegaconf" in str(error):
            raise AttuneError(
                f"{path}: its configuration is a pickled omegaconf object, and reading one can run "
                "code; where you trust the file, convert it with audiocraft.utils.export "
                "(export_encodec or export_lm), which stores the configuration as text"
            ) from error
        raise AttuneError(
            f"{path}: not a checkpoint of tensors and plain values, and reading anything else can "
            f"run code: {one_line(error)}"
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise AttuneError(f"{path}: cannot be read: {one_line(error)}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of Hugging Face's."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AttuneError(f"{index}: not an index of weights: {error}") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise AttuneError(f"{index}: names {name!r}, which is no file beside it")
    return [index.parent / name for name in names]


def _read_all(paths: list[Path], prefix: str) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for path in paths:
        if path.suffix == ".bin":
            found = load_pickle(path)
            if not isinstance(found, dict):
                raise AttuneError(f"{path}: holds a {type(found).__name__}, expected named tensors")
            weights |= {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
            continue
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    if name.startswith(prefix):
                        weights[name.removeprefix(prefix)] = file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise AttuneError(f"{path}: cannot be read: {error}") from error
    return weights
