"""The codec's modules: Hugging Face's `EncodecModel`, initialized for training."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from common.codec import keep_numbers_on_host
from common.errors import AttuneError
from training.codec.config import CodecArchitecture


def build_model(architecture: CodecArchitecture, sample_rate: int) -> Any:
    """An untrained Hugging Face `EncodecModel`: non-causal, weight norm, mono, no chunking."""
    from transformers import EncodecConfig, EncodecModel

    frame_rate = sample_rate / math.prod(architecture.ratios)
    if not frame_rate.is_integer():
        raise AttuneError(
            f"codec_training.architecture.ratios {architecture.ratios}: {sample_rate} Hz is not a "
            f"multiple of their product {math.prod(architecture.ratios)}"
        )
    bits = math.log2(architecture.codebook_size)
    bandwidth = architecture.n_codebooks * bits * frame_rate / 1000
    config = EncodecConfig(
        # A hair above the exact value: its quotient by bits per stream is rounded down.
        target_bandwidths=[round(bandwidth + 1e-3, 6)],
        sampling_rate=sample_rate,
        audio_channels=1,
        normalize=False,
        chunk_length_s=None,
        num_filters=architecture.num_filters,
        hidden_size=architecture.hidden_size,
        codebook_dim=architecture.hidden_size,
        codebook_size=architecture.codebook_size,
        upsampling_ratios=list(architecture.ratios),
        num_lstm_layers=2,
        use_causal_conv=False,
        norm_type="weight_norm",
    )
    model = EncodecModel(config)
    if model.quantizer.num_quantizers != architecture.n_codebooks:
        raise AttuneError(
            f"codec_training.architecture: {architecture.n_codebooks} x "
            f"{architecture.codebook_size} codes cannot be expressed as an EncodecModel"
        )
    initialize(model)
    keep_numbers_on_host(model)
    for module in model.modules():
        if type(module) is nn.LSTM:
            module.__class__ = _LSTM
    return model


class _LSTM(nn.LSTM):
    """LSTM in fp32 on GPUs: under autocast PyTorch runs LSTMs in fp16 there, even if bf16 is asked
    for, and gradients of this size vanish in fp16."""

    def forward(self, x: Tensor, hx: Any = None) -> Any:
        if not x.is_cuda:
            return super().forward(x, hx)  # type: ignore[has-type]
        with torch.autocast("cuda", enabled=False):
            return super().forward(x.float(), hx)  # type: ignore[has-type]


@torch.no_grad()
def initialize(model: Any) -> None:
    """He-initialize the convolutions, biases zero.

    PyTorch's default shrinks the signal in each of SEANet's layers: latents then vary 1000 times
    less than their mean, and a short training ends with one code per stream.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            weight = module.weight
            fan_in: float = weight.shape[1] * weight.shape[2]
            if isinstance(module, nn.ConvTranspose1d):  # [in, out, kernel]; inputs overlap
                fan_in = weight.shape[0] * weight.shape[2] / module.stride[0]
            # Through the weight-norm parametrization: assigning splits norm and direction.
            module.weight = torch.randn_like(weight) * math.sqrt(1.55 / fan_in)
            assert module.bias is not None
            module.bias.zero_()
    last = model.decoder.layers[-1].conv
    last.weight = last.weight * 0.05  # an untrained decoder whispers instead of clipping
