"""A text encoder as wide as the decoder, for a library that projects no states then.

`MusicgenForConditionalGeneration` has its `enc_to_dec_proj` only where the two widths differ.  Ours
always projects: c = W t + b for a token's state t, c = 0 for padding and for dropped text.  Where
the widths are equal, the same function is put together from what theirs has:

- W = 1, b = 0 (models that came from there): leave the projection out.
- T5: make the encoder one channel wider.  The new channel holds zeros everywhere, and the
  projection gets a column of zeros.  T5 has no biases, and its norms divide by the root mean
  square: over d + 1 channels that is smaller by sqrt(d / (d + 1)), which their weights and epsilon
  take up.
- Encoders that end in a LayerNorm (BERT and its kin): W goes into the cross-attentions' keys and
  values, and b, which cannot (keys and values have no biases there, and dropped text must stay at
  zero), into the last norm's bias, as W^-1 b.
- Others are refused.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import AttuneError
from training.lm.model import Architecture

Fitted = tuple[Any, dict[str, Tensor], Architecture]


def fit_widths(encoder: Any, ours: dict[str, Tensor], arch: Architecture) -> Fitted:
    """Encoder, weights and architecture of the same function in Hugging Face's terms.

    Args:
        encoder: a Hugging Face text encoder of width `arch.text_dim`; it is not changed.
        ours: weights of our `LanguageModel`.

    Returns:
        Encoder, our weights and our architecture.  If the widths still are equal, the projection is
        the identity.

    Raises:
        AttuneError: the encoder ends in nothing that could take in the projection's bias, or the
            projection cannot be inverted.
    """
    if arch.text_dim != arch.d_model:
        return encoder, ours, arch
    weight, bias = ours["text_projection.weight"], ours["text_projection.bias"]
    if torch.equal(weight, torch.eye(arch.d_model)) and not bias.any():
        return encoder, ours, arch
    if hasattr(encoder.config, "layer_norm_epsilon") and encoder.config.model_type.endswith("t5"):
        projection = {"text_projection.weight": nn.functional.pad(weight, (0, 1))}
        return _wider_t5(encoder), ours | projection, replace(arch, text_dim=arch.text_dim + 1)
    return _shifted(encoder, weight, bias), _folded(ours, weight, arch), arch


def _wider_t5(encoder: Any) -> Any:
    width = encoder.config.d_model
    config = copy.deepcopy(encoder.config)
    config.d_model = width + 1
    config.layer_norm_epsilon *= width / (width + 1)
    wider = type(encoder)(config)
    state = dict(encoder.state_dict())
    for name, expected in wider.state_dict().items():
        value = state[name]
        if value.ndim == 1:  # norms are all there is
            value = value * (width / (width + 1)) ** 0.5
        for axis, (old, new) in enumerate(zip(value.shape, expected.shape, strict=True)):
            if old != new:
                rest = [size if i != axis else new - old for i, size in enumerate(value.shape)]
                value = torch.cat([value, value.new_zeros(rest)], dim=axis)
        state[name] = value
    wider.load_state_dict(state)
    return wider.eval().requires_grad_(False)


def _shifted(encoder: Any, weight: Tensor, bias: Tensor) -> Any:
    """The encoder with `W^-1 b` added to its states."""
    if not bias.any():
        return encoder
    try:
        shift = torch.linalg.solve(weight.double(), bias.double())
    except RuntimeError:  # singular
        shift = torch.full_like(bias, torch.inf)
    # States are of the order of 1: what is added in fp32 must leave their digits alone.
    if not shift.abs().max() < 100:
        raise AttuneError(
            "export: the text projection cannot be inverted, and MusicgenForConditionalGeneration "
            f"has none where text encoder and decoder are equally wide ({len(bias)}); train with "
            "another lm.model.d_model"
        )
    encoder = copy.deepcopy(encoder)
    norm = _last_norm(encoder)
    if norm is None:
        raise AttuneError(
            f"export: text encoder and decoder are equally wide ({len(bias)}), where "
            "MusicgenForConditionalGeneration has no text projection, and this text encoder ends "
            "in no LayerNorm that could take ours in; train with another lm.model.d_model"
        )
    norm.bias.add_(shift.float())
    return encoder


@torch.no_grad()
def _last_norm(encoder: Any) -> nn.LayerNorm | None:
    """The LayerNorm whose output is the encoder's."""
    outputs: list[tuple[nn.LayerNorm, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda norm, _, output: outputs.append((norm, output)))
        for module in encoder.modules()
        if isinstance(module, nn.LayerNorm) and module.bias is not None
    ]
    ids = torch.ones(1, 3, dtype=torch.long)
    states = encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    for hook in hooks:
        hook.remove()
    return next((norm for norm, output in outputs if torch.equal(output, states)), None)


def _folded(ours: dict[str, Tensor], weight: Tensor, arch: Architecture) -> dict[str, Tensor]:
    """W inside keys and values: (K W) t = K (W t)."""
    folded = dict(ours)
    for i in range(arch.n_layers):
        name = f"blocks.{i}.cross_attention.kv.weight"
        folded[name] = (ours[name].double() @ weight.double()).float()
    folded["text_projection.weight"] = torch.eye(arch.d_model)
    folded["text_projection.bias"] = torch.zeros(arch.d_model)
    return folded
