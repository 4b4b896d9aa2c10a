"""A decoder that others wrote: Hugging Face's MusicGen behind a text projection, our weights.

Both models compute the same function, so that a benchmark or a test may compare their speed,
logits, losses and gradients; `training.interop.musicgen.to_musicgen` gives it our weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from training.config import OptimConfig
from training.interop.musicgen import decoder_config
from training.lm.model import Architecture


class Musicgen(nn.Module):
    """`MusicgenForCausalLM` behind the projection that `MusicgenForConditionalGeneration` puts
    before it."""

    def __init__(self, arch: Architecture) -> None:
        from transformers import MusicgenForCausalLM

        super().__init__()
        self.enc_to_dec_proj = nn.Linear(arch.text_dim, arch.d_model)
        config = decoder_config(arch)
        config.use_cache = False
        self.decoder: Any = MusicgenForCausalLM(config)

    def forward(self, inputs: Tensor, targets: Tensor, text: Tensor, mask: Tensor) -> Any:
        """Its output, `loss` included.

        Args:
            inputs, targets: `[B, K, S]`, as `training.lm.patterns.delay` lays them out.
            text: `[B, L, text_dim]`; mask: bool `[B, L]`.
        """
        return self.decoder(
            input_ids=inputs.flatten(0, 1),
            encoder_hidden_states=self.enc_to_dec_proj(text) * mask[:, :, None],
            encoder_attention_mask=mask.long(),
            labels=targets.transpose(1, 2),
        )


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
        betas=(0.9, 0.95),
        fused=True,
    )
