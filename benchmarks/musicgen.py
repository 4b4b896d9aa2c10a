"""A decoder that others wrote: Hugging Face's MusicGen behind a text projection, our weights.

Both models compute the same function, so that a benchmark or a test may compare their speed,
logits, losses and gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from training.config import OptimConfig
from training.lm.model import Architecture


class Musicgen(nn.Module):
    """`MusicgenForCausalLM` behind the projection that `MusicgenForConditionalGeneration` puts
    before it."""

    def __init__(self, arch: Architecture) -> None:
        from transformers import MusicgenDecoderConfig, MusicgenForCausalLM

        super().__init__()
        self.text_projection = nn.Linear(arch.text_dim, arch.d_model)
        self.decoder: Any = MusicgenForCausalLM(
            MusicgenDecoderConfig(
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
                use_cache=False,
            )
        )

    def forward(self, inputs: Tensor, targets: Tensor, text: Tensor, mask: Tensor) -> Any:
        """Its output, `loss` included.

        Args:
            inputs, targets: `[B, K, S]`, as `training.lm.patterns.delay` lays them out.
            text: `[B, L, text_dim]`; mask: bool `[B, L]`.
        """
        return self.decoder(
            input_ids=inputs.flatten(0, 1),
            encoder_hidden_states=self.text_projection(text) * mask[:, :, None],
            encoder_attention_mask=mask.long(),
            labels=targets.transpose(1, 2),
        )


def musicgen_weights(ours: dict[str, Tensor], arch: Architecture) -> dict[str, Tensor]:
    """The weights of our `LanguageModel` under the names of `Musicgen`."""
    root = "decoder.model.decoder."
    theirs = {
        "text_projection.weight": ours["text_projection.weight"],
        "text_projection.bias": ours["text_projection.bias"],
        f"{root}layer_norm.weight": ours["norm.weight"],
        f"{root}layer_norm.bias": ours["norm.bias"],
    }
    tables = ours["embedding.weight"].chunk(arch.n_codebooks)
    heads = ours["head.weight"].chunk(arch.n_codebooks)
    for k, (table, head) in enumerate(zip(tables, heads, strict=True)):
        theirs[f"{root}embed_tokens.{k}.weight"] = table
        theirs[f"decoder.lm_heads.{k}.weight"] = head
    for i in range(arch.n_layers):
        layer, block = f"{root}layers.{i}.", f"blocks.{i}."
        for norm, name in (
            ("norm_self", "self_attn_layer_norm"),
            ("norm_cross", "encoder_attn_layer_norm"),
            ("norm_ff", "final_layer_norm"),
        ):
            for part in ("weight", "bias"):
                theirs[f"{layer}{name}.{part}"] = ours[f"{block}{norm}.{part}"]
        for fused, attention, letters in (
            ("self_attention.qkv", "self_attn", "qkv"),
            ("cross_attention.q", "encoder_attn", "q"),
            ("cross_attention.kv", "encoder_attn", "kv"),
        ):
            projections = ours[f"{block}{fused}.weight"].chunk(len(letters))
            for letter, projection in zip(letters, projections, strict=True):
                theirs[f"{layer}{attention}.{letter}_proj.weight"] = projection
        theirs |= {
            f"{layer}self_attn.out_proj.weight": ours[f"{block}self_attention.out.weight"],
            f"{layer}encoder_attn.out_proj.weight": ours[f"{block}cross_attention.out.weight"],
            f"{layer}fc1.weight": ours[f"{block}ff_in.weight"],
            f"{layer}fc2.weight": ours[f"{block}ff_out.weight"],
        }
    return theirs


def musicgen_optimizer(model: Musicgen, config: OptimConfig) -> torch.optim.AdamW:
    """The AdamW that `training.optim.build_optimizer` makes: fused, the same parameters decayed."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim >= 2 and "embed_tokens" not in name
        (decayed if matrix else plain).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=config.betas,
        fused=True,
    )
