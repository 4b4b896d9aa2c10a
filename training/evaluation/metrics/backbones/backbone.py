"""What all backbones have in common: a protocol, and weights from files that are not trusted."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.audio import Wave
from common.errors import AttuneError

Embeddings = NDArray[np.float32]


class MissingBackbone(AttuneError):
    """A backbone that cannot be had, in one line; what needs it is left out, the rest goes on."""


class Backbone(Protocol):
    """From a clip to embeddings, without any chance in it."""

    name: str
    sample_rate: int
    """Hz of the waveforms that it takes."""
    facts: dict[str, Any]
    """For the metric card: weights' hash, window, hop."""

    def embed(self, wave: Wave) -> Embeddings:
        """Waveform float32 [S], S > 0, to float32 [frames, D], at least one frame."""
        ...


def identity(backbone: Backbone) -> str:
    """Hash of everything that embeddings depend on: name, rate and facts."""
    facts = [backbone.name, backbone.sample_rate, sorted(backbone.facts.items())]
    return hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()


def file_hash(path: Path) -> str:
    """First 16 hex digits of a file's sha256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def load_state(name: str, path: Path) -> dict[str, Tensor]:
    """A state dict out of a `.pth` or `.pt` file; nothing in the file is ever run.

    Raises:
        MissingBackbone: no such file, or it holds something else.
    """
    if not path.is_file():
        raise MissingBackbone(f"{name}: no weights at {path}; `make weights` downloads them")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise MissingBackbone(
            f"{name}: {path} is not a file of weights ({type(error).__name__}); "
            "delete it and run `make weights`"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise MissingBackbone(f"{name}: {path} holds no state dict of tensors")
    return state


def load_into(name: str, path: Path, model: torch.nn.Module, state: dict[str, Tensor]) -> None:
    """Put a state dict into a model and freeze it.

    Raises:
        MissingBackbone: names or shapes are not the model's.
    """
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        found = " ".join(str(error).split())[:200]
        raise MissingBackbone(f"{name}: {path} does not fit: {found}") from error
    model.eval().requires_grad_(False)
