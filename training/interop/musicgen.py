"""Our decoder's weights under the names of Hugging Face's `MusicgenForConditionalGeneration`.

Both compute the same function; what differs is how weights are cut up:

    ours                                    theirs
    embedding           K tables stacked    decoder.model.decoder.embed_tokens.K
    head                K heads stacked     decoder.lm_heads.K
    self_attention.qkv  fused               self_attn.{q,k,v}_proj
    cross_attention.kv  fused               encoder_attn.{k,v}_proj
    text_projection                         enc_to_dec_proj; none where widths are equal

Theirs has no projection where the text encoder is as wide as the decoder: an import gets one that
changes nothing, and an export must have such a one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from common.errors import AttuneError
from training.lm.model import Architecture, LanguageModel

_ROOT = "decoder.model.decoder."
_POSITIONS = f"{_ROOT}embed_positions.weights"
"""In older files; a function of the width."""
_NORMS = (
    ("norm_self", "self_attn_layer_norm"),
    ("norm_cross", "encoder_attn_layer_norm"),
    ("norm_ff", "final_layer_norm"),
)
_FUSED = (
    ("self_attention.qkv", "self_attn", "qkv"),
    ("cross_attention.q", "encoder_attn", "q"),
    ("cross_attention.kv", "encoder_attn", "kv"),
)
_PLAIN = (
    ("self_attention.out", "self_attn.out_proj"),
    ("cross_attention.out", "encoder_attn.out_proj"),
    ("ff_in", "fc1"),
    ("ff_out", "fc2"),
)


def to_musicgen(ours: dict[str, Tensor], arch: Architecture) -> dict[str, Tensor]:
    """The weights of our `LanguageModel` under their names: views, nothing is copied."""
    theirs = {
        "enc_to_dec_proj.weight": ours["text_projection.weight"],
        "enc_to_dec_proj.bias": ours["text_projection.bias"],
        f"{_ROOT}layer_norm.weight": ours["norm.weight"],
        f"{_ROOT}layer_norm.bias": ours["norm.bias"],
    }
    tables = ours["embedding.weight"].chunk(arch.n_codebooks)
    heads = ours["head.weight"].chunk(arch.n_codebooks)
    for k, (table, head) in enumerate(zip(tables, heads, strict=True)):
        theirs[f"{_ROOT}embed_tokens.{k}.weight"] = table
        theirs[f"decoder.lm_heads.{k}.weight"] = head
    for i in range(arch.n_layers):
        layer, block = f"{_ROOT}layers.{i}.", f"blocks.{i}."
        for norm, name in _NORMS:
            for part in ("weight", "bias"):
                theirs[f"{layer}{name}.{part}"] = ours[f"{block}{norm}.{part}"]
        for fused, attention, letters in _FUSED:
            projections = ours[f"{block}{fused}.weight"].chunk(len(letters))
            for letter, projection in zip(letters, projections, strict=True):
                theirs[f"{layer}{attention}.{letter}_proj.weight"] = projection
        for linear, name in _PLAIN:
            theirs[f"{layer}{name}.weight"] = ours[f"{block}{linear}.weight"]
    return theirs


def from_musicgen(theirs: dict[str, Tensor], arch: Architecture, where: str) -> dict[str, Tensor]:
    """Their weights, float32, under the names of our `LanguageModel`.

    Args:
        theirs: names as in `to_musicgen`; without `enc_to_dec_proj` states pass as they are.
        arch: what the configuration says.
        where: how messages name the source.

    Raises:
        AttuneError: weights are missing, unknown (a bias, say), or of other shapes.
    """
    theirs = {name: value.float() for name, value in theirs.items() if name != _POSITIONS}
    if "enc_to_dec_proj.weight" not in theirs and arch.text_dim == arch.d_model:
        theirs["enc_to_dec_proj.weight"] = torch.eye(arch.d_model)
        theirs["enc_to_dec_proj.bias"] = torch.zeros(arch.d_model)
    shapes = _shapes(arch)
    for what, names in (
        ("lacks", shapes.keys() - theirs.keys()),
        ("has unknown", theirs.keys() - shapes.keys()),
    ):
        if names:
            raise AttuneError(
                f"{where}: {what} {len(names)} weights of the language model ({min(names)}, ...); "
                "it is not MusicGen's architecture, or configuration and weights do not belong "
                "together"
            )
    for name, shape in shapes.items():
        if theirs[name].shape != shape:
            raise AttuneError(
                f"{where}: {name} is {tuple(theirs[name].shape)}, its configuration makes it "
                f"{tuple(shape)}"
            )
    streams = range(arch.n_codebooks)
    ours = {
        "text_projection.weight": theirs["enc_to_dec_proj.weight"],
        "text_projection.bias": theirs["enc_to_dec_proj.bias"],
        "norm.weight": theirs[f"{_ROOT}layer_norm.weight"],
        "norm.bias": theirs[f"{_ROOT}layer_norm.bias"],
        "embedding.weight": torch.cat([theirs[f"{_ROOT}embed_tokens.{k}.weight"] for k in streams]),
        "head.weight": torch.cat([theirs[f"decoder.lm_heads.{k}.weight"] for k in streams]),
    }
    for i in range(arch.n_layers):
        layer, block = f"{_ROOT}layers.{i}.", f"blocks.{i}."
        for norm, name in _NORMS:
            for part in ("weight", "bias"):
                ours[f"{block}{norm}.{part}"] = theirs[f"{layer}{name}.{part}"]
        for fused, attention, letters in _FUSED:
            ours[f"{block}{fused}.weight"] = torch.cat(
                [theirs[f"{layer}{attention}.{letter}_proj.weight"] for letter in letters]
            )
        for linear, name in _PLAIN:
            ours[f"{block}{linear}.weight"] = theirs[f"{layer}{name}.weight"]
    return ours


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
        config: their configuration.
        text_dim: width of the text encoder's states.
        where: how messages name the source.

    Raises:
        AttuneError: it is not what our decoder computes.
    """
    refused = {
        "audio_channels": (1, "stereo"),
        "activation_function": ("gelu", "another activation"),
        "scale_embedding": (False, "scaled embeddings"),
        "pad_token_id": (config.vocab_size, "another special token"),
        "bos_token_id": (config.vocab_size, "another special token"),
    }
    for key, (expected, what) in refused.items():
        if getattr(config, key) != expected:
            raise AttuneError(
                f"{where}: {what} is not supported: decoder.{key} is {getattr(config, key)!r}, "
                f"expected {expected!r}"
            )
    if config.ffn_dim % config.hidden_size:
        raise AttuneError(
            f"{where}: decoder.ffn_dim {config.ffn_dim} is no multiple of hidden_size "
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


def _shapes(arch: Architecture) -> dict[str, torch.Size]:
    """Their names and shapes, from a model without memory."""
    with torch.device("meta"):
        state = LanguageModel(arch).state_dict()
    return {name: value.shape for name, value in to_musicgen(state, arch).items()}
