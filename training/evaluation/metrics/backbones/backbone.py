"""The protocol of a backbone, and loading of weights from files that are not trusted."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.audio import Wave
from common.errors import AttuneError, one_line

Embeddings = NDArray[np.float32]


class MissingBackbone(AttuneError):
    """A backbone that cannot be loaded, in one line; only the metrics that need it are left out."""


class Backbone(Protocol):
    """A deterministic function from a clip to embeddings."""

    name: str
    sample_rate: int
    """Sample rate of its input, Hz."""
    facts: dict[str, Any]
    """Hash of the weights, window, hop, ...; shown in the metric card."""

    def embed(self, wave: Wave) -> Embeddings:
        """Waveform float32 [S], S > 0, to embeddings float32 [frames, D], frames > 0."""
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
    """Load the state dict of a `.pth` or `.pt` file; no code in the file is executed.

    Raises:
        MissingBackbone: no such file, or it has no state dict.
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


def load_network(
    name: str, path: Path, build: Callable[[dict[str, Tensor]], nn.Module], device: str
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Build a frozen network whose sizes follow its weights; returns it with the weights.

    Raises:
        MissingBackbone: no weights, or weights of another network.
    """
    state = load_state(name, path)
    try:
        model = build(state)
        model.load_state_dict(state)
    except (KeyError, ValueError, RuntimeError) as error:
        raise MissingBackbone(f"{name}: {path} does not fit: {one_line(error)}") from error
    return model.eval().requires_grad_(False).to(device), state
