"""Our decoder's weights under the names of Hugging Face's `MusicgenForConditionalGeneration`.

Both models compute the same function, from weights that are divided differently:

    ours                                    theirs
    embedding           K tables stacked    decoder.model.decoder.embed_tokens.K
    head                K heads stacked     decoder.lm_heads.K
    self_attention.qkv  fused               self_attn.{q,k,v}_proj
    cross_attention.kv  fused               encoder_attn.{k,v}_proj
    text_projection                         enc_to_dec_proj; none where widths are equal

Their model has no projection where the text encoder is as wide as the decoder.  There an import
adds a projection that changes nothing, and an export needs such a one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from common.errors import AttuneError
from training.interop.sources import check_weights
from training.lm.model import Architecture, LanguageModel

_ROOT = "decoder.model.decoder."
_POSITIONS = f"{_ROOT}embed_positions.weights"
"""Only in older files; their values follow from the width."""
_IN_A_LAYER = {
    "norm_self.weight": ["self_attn_layer_norm.weight"],
    "norm_self.bias": ["self_attn_layer_norm.bias"],
    "norm_cross.weight": ["encoder_attn_layer_norm.weight"],
    "norm_cross.bias": ["encoder_attn_layer_norm.bias"],
    "norm_ff.weight": ["final_layer_norm.weight"],
    "norm_ff.bias": ["final_layer_norm.bias"],
    "self_attention.qkv.weight": [f"self_attn.{letter}_proj.weight" for letter in "qkv"],
    "self_attention.out.weight": ["self_attn.out_proj.weight"],
    "cross_attention.q.weight": ["encoder_attn.q_proj.weight"],
    "cross_attention.kv.weight": [f"encoder_attn.{letter}_proj.weight" for letter in "kv"],
    "cross_attention.out.weight": ["encoder_attn.out_proj.weight"],
    "ff_in.weight": ["fc1.weight"],
    "ff_out.weight": ["fc2.weight"],
}


def _names(arch: Architecture) -> dict[str, list[str]]:
    """Our name of every weight, and the names of their weights that it stacks, first rows first."""
    streams = range(arch.n_codebooks)
    names = {
        "text_projection.weight": ["enc_to_dec_proj.weight"],
        "text_projection.bias": ["enc_to_dec_proj.bias"],
        "norm.weight": [f"{_ROOT}layer_norm.weight"],
        "norm.bias": [f"{_ROOT}layer_norm.bias"],
        "embedding.weight": [f"{_ROOT}embed_tokens.{k}.weight" for k in streams],
        "head.weight": [f"decoder.lm_heads.{k}.weight" for k in streams],
    }
    for i in range(arch.n_layers):
        for name, theirs in _IN_A_LAYER.items():
            names[f"blocks.{i}.{name}"] = [f"{_ROOT}layers.{i}.{part}" for part in theirs]
    return names


def to_musicgen(ours: dict[str, Tensor], arch: Architecture) -> dict[str, Tensor]:
    """The weights of our `LanguageModel` under their names: views, without a copy."""
    return {
        name: part
        for own, theirs in _names(arch).items()
        for name, part in zip(theirs, ours[own].chunk(len(theirs)), strict=True)
    }


def from_musicgen(theirs: dict[str, Tensor], arch: Architecture, where: str) -> dict[str, Tensor]:
    """Their weights, float32, under the names of our `LanguageModel`.

    Args:
        theirs: names as in `to_musicgen`; without `enc_to_dec_proj` text states are not projected.
        arch: what the configuration says.
        where: the source, for messages.

    Raises:
        AttuneError: weights are missing, unknown (for example a bias), or of other shapes.
    """
    theirs = {name: value.float() for name, value in theirs.items() if name != _POSITIONS}
    if "enc_to_dec_proj.weight" not in theirs and arch.text_dim == arch.d_model:
        theirs["enc_to_dec_proj.weight"] = torch.eye(arch.d_model)
        theirs["enc_to_dec_proj.bias"] = torch.zeros(arch.d_model)
    with torch.device("meta"):  # shapes, without memory for the values
        expected = to_musicgen(LanguageModel(arch).state_dict(), arch)
    check_weights(theirs, expected, f"{where}: the language model")
    return {own: torch.cat([theirs[name] for name in names]) for own, names in _names(arch).items()}


def decoder_config(arch: Architecture) -> Any:
    """The `MusicgenDecoderConfig` of our architecture."""
    from transformers import MusicgenDecoderConfig

    return MusicgenDecoderConfig(
        vocab_size=arch.codebook_size,
        hidden_size=arch.d_model,
        num_hidden_layers=arch.n_layers,
        num_attention_heads=arch.n_heads,
        ffn_dim=arch.ff_mult * arch.d_model,
        num_codebooks=arch.n_codebooks,
        dropout=0.0,
        pad_token_id=arch.special,
        bos_token_id=arch.special,
        audio_channels=1,
    )


def architecture(config: Any, text_dim: int, where: str) -> Architecture:
    """Our architecture of a `MusicgenDecoderConfig`.

    Args:
        text_dim: width of the text encoder's states.
        where: the source, for messages.

    Raises:
        AttuneError: our decoder does not compute what the configuration asks for.
    """
    for key, expected in (
        ("audio_channels", 1),
        ("activation_function", "gelu"),
        ("scale_embedding", False),
        ("pad_token_id", config.vocab_size),
        ("bos_token_id", config.vocab_size),
    ):
        found = getattr(config, key)
        if found != expected:
            raise AttuneError(
                f"{where}: decoder.{key} is {found!r}; only {expected!r} is supported"
            )
    if config.ffn_dim % config.hidden_size:
        raise AttuneError(
            f"{where}: decoder.ffn_dim {config.ffn_dim} is not a multiple of hidden_size "
            f"{config.hidden_size}"
        )
    return Architecture(
        d_model=config.hidden_size,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        n_codebooks=config.num_codebooks,
        codebook_size=config.vocab_size,
        text_dim=text_dim,
        ff_mult=config.ffn_dim // config.hidden_size,
    )
