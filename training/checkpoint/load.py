"""Weights of a checkpoint for inference: the average, or the raw weights."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_model_state_dict

from common.errors import AttuneError, one_line
from training.checkpoint.plain_state import load_state
from training.lm.model import Architecture, LanguageModel

_NEEDED = ("architecture", "codec_id", "text_encoder_id", "prompt_policy", "segment_s", "step")
"""Keys of `model.json` that generation needs."""


def read_description(folder: Path) -> dict[str, Any]:
    """`model.json` of a checkpoint.

    Raises:
        AttuneError: it is missing or damaged.
    """
    try:
        description = json.loads((folder / "model.json").read_text())
        missing = [key for key in _NEEDED if key not in description]
    except (OSError, ValueError, TypeError) as error:
        raise AttuneError(f"checkpoint {folder}: cannot be loaded: {one_line(error)}") from error
    if missing:
        raise AttuneError(
            f"checkpoint {folder}: model.json lacks {', '.join(missing)}; it is damaged or "
            "was written by another version: name another checkpoint, or train again"
        )
    return description


def load_for_inference(folder: Path, raw: bool = False) -> tuple[LanguageModel, dict[str, Any]]:
    """The EMA model of a checkpoint, on the CPU in eval mode, and its `model.json`.

    Args:
        raw: load the weights that training works on, instead of their average.

    Raises:
        AttuneError: files are missing or damaged.
    """
    description = read_description(folder)
    try:
        model = LanguageModel(Architecture(**description["architecture"]))
        weights = _raw_weights(folder, model) if raw else load_file(folder / "model.safetensors")
        model.load_state_dict(weights)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise AttuneError(f"checkpoint {folder}: cannot be loaded: {one_line(error)}") from error
    return model.eval().requires_grad_(False), description


def _raw_weights(folder: Path, model: LanguageModel) -> dict[str, Tensor]:
    if not (folder / "state").is_dir():
        raise AttuneError(
            f"checkpoint {folder}: has only averaged weights and no raw ones (no state/)"
        )
    state: dict[str, Any] = {"model": get_model_state_dict(model)}
    try:
        with quiet():
            load_state(state, folder / "state", no_dist=True)
    except (Exception, CheckpointException) as error:  # a damaged pickle can raise anything
        raise AttuneError(f"checkpoint {folder}: cannot be loaded: {innermost(error)}") from error
    return cast(dict[str, Tensor], state["model"])


def innermost(error: BaseException) -> str:
    """The first cause of an error as one line: DCP wraps it in a report of all processes."""
    while True:
        if isinstance(error, AttuneError):
            return str(error)
        if isinstance(error, CheckpointException) and error.failures:
            error = next(iter(error.failures.values()))[0]
        elif error.__cause__ is not None:
            error = error.__cause__
        else:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Hide DCP's warnings about running without a process group."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
