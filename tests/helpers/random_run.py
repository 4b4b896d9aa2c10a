"""Runs with random weights, far from uniform, over any codec and text encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tiny_lm import make_codec, make_encoder
from torch import Tensor

from common.codec import codec_identity, load_codec
from common.config import Recipe, TextEncoderConfig
from common.text_encoder import load_text_encoder
from training.lm.model import Architecture, LanguageModel
from training.run.folder import as_recorded

WORDS = ["dog", "bark", "rain", "roof", "loud", "bell", "far", "away", "engine", "bird"]


def make_run(
    root: Path, codec: str, encoder: str, seconds: float = 0.4, **sizes: int
) -> tuple[Recipe, Path]:
    """A recipe and a run's folder with one checkpoint in `root`, as training would leave them.

    Args:
        codec, encoder: as in a recipe.
        seconds: length of the longest training clip.
        sizes: sizes of the decoder.
    """
    recipe = Recipe(
        name="random",
        run_dir=str(root),
        data_dir=str(root / "data"),
        sample_rate=load_codec(codec).sample_rate,
        codec={"path": codec},
        text_encoder={"path": encoder, "max_length": 16},
        sampling={"duration_s": seconds},
    )
    model, description = random_model(recipe, seconds, **sizes)
    folder = root / "lm" / "checkpoints" / "step-00000007"
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "model.json").write_text(json.dumps(description | {"step": 7}))
    (root / "lm" / "latest").write_text("step-00000007\n")
    (root / "lm" / "config.json").write_text(json.dumps({"recipe": as_recorded(recipe)}))
    return recipe, root / "lm"


def make_tiny_run(root: Path, kind: str = "bert") -> tuple[Recipe, Path]:
    """A run over a random codec and a random text encoder of either kind (`bert`, `t5`)."""
    make_codec(root / "codec")
    (make_encoder if kind == "bert" else make_t5)(root / "encoder")
    return make_run(root, str(root / "codec"), str(root / "encoder"))


def random_model(
    recipe: Recipe, seconds: float, **sizes: int
) -> tuple[LanguageModel, dict[str, Any]]:
    """A decoder that reacts to its text, and its `model.json` without the step."""
    codec = load_codec(recipe.codec.path)
    encoder = load_text_encoder(TextEncoderConfig(**recipe.text_encoder.model_dump()))
    arch = Architecture(
        **({"d_model": 48, "n_layers": 2, "n_heads": 4} | sizes),
        n_codebooks=codec.n_codebooks,
        codebook_size=codec.codebook_size,
        text_dim=encoder.dim,
    )
    model = LanguageModel(arch).eval().requires_grad_(False)
    model.initialize(0)
    model.text_projection.bias.normal_(generator=torch.Generator().manual_seed(1), std=0.5)
    model.head.weight.mul_(4)
    for block in model.blocks:
        block.cross_attention.out.weight.mul_(3)  # type: ignore[union-attr]
    return model, {
        "architecture": arch.as_dict(),
        "codec_id": codec_identity(recipe.codec.path),
        "text_encoder_id": encoder.text_encoder_id,
        "prompt_policy": "lemmas",
        "sample_rate": codec.sample_rate,
        "frame_rate": 50,
        "segment_s": 10.0,
        "trained_s": seconds,
        "recipe": "random",
        "run": "lm",
    }


def make_t5(folder: Path, width: int = 24) -> Path:
    """A random T5 encoder with a tokenizer of a few words, which ends prompts as T5's does."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    torch.manual_seed(0)
    words = ["<pad>", "</s>", "<unk>", *WORDS]
    config = T5Config(
        vocab_size=len(words), d_model=width, d_kv=8, d_ff=40, num_layers=2, num_heads=3
    )
    model = T5EncoderModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.rand_like(parameter) + 0.5)
            else:
                parameter.normal_(std=1.0 if "shared" in name else 0.3)
    model.save_pretrained(folder)
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def their_codes(model: Any, tokenizer: Any, prompts: list[str], **settings: Any) -> Tensor:
    """Codes `[B, K, T]` that `MusicgenForConditionalGeneration.generate` draws."""
    seen: list[Tensor] = []
    decode = model.audio_encoder.decode
    model.audio_encoder.decode = lambda codes, **rest: seen.append(codes) or decode(codes, **rest)
    try:
        model.generate(**tokenizer(prompts, padding=True, return_tensors="pt"), **settings)
    finally:
        del model.audio_encoder.decode
    return seen[0][0]


def text_states(*lengths: int, width: int = 20) -> list[np.ndarray]:
    """Random text states, float16 `[length, width]` each."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal((length, width)).astype(np.float16) for length in lengths]


def padded(states: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Text states and their mask as the model takes them: `[B, L, D]` and bool `[B, L]`."""
    parts = [torch.from_numpy(state.astype(np.float32)) for state in states]
    text = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
    return text, torch.arange(text.shape[1]) < torch.tensor([[len(part)] for part in parts])
