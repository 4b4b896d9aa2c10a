"""Hugging Face's MusicGen decoder behind a text projection, to be compared with our model.

Both models compute the same function, so a benchmark or a test may compare their speed, logits,
losses and gradients. `training.interop.musicgen.to_musicgen` converts our weights for this model.
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
        """The decoder's output, with its `loss`.

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
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[parameter.ndim >= 2 and "embed_tokens" not in name].append(parameter)
    decayed = {"params": groups[True], "weight_decay": config.weight_decay}
    plain = {"params": groups[False], "weight_decay": 0.0}
    return torch.optim.AdamW([decayed, plain], lr=config.lr, betas=(0.9, 0.95), fused=True)
