"""EnCodec's encoder, laid out for speed: the same codes as Hugging Face's modules in less time.

Activations stay in [batch, time, channel] order. So every convolution is channels-last (oneDNN's
fast path), padding copies rows, and the LSTM needs no transpose. The weights of the `EncodecModel`
are converted once. `supports` says whether a model has only the layers that are implemented here.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def supports(encoder: Any) -> bool:
    """Whether `FastEncoder` can replace a Hugging Face `EncodecEncoder`."""
    kinds = {type(module).__name__ for module in encoder.layers}
    convolutions = [m for m in encoder.modules() if type(m).__name__ == "EncodecConv1d"]
    return kinds <= {"EncodecConv1d", "EncodecResnetBlock", "ELU", "EncodecLSTM"} and all(
        not conv.causal and conv.pad_mode == "reflect" and conv.norm_type == "weight_norm"
        for conv in convolutions
    )


class FastEncoder(nn.Module):
    """Waveforms [B, S] -> latents [B, D, T], T = ceil(S / hop).

    Args:
        encoder: an `EncodecEncoder` that `supports` accepts, with folded weight norm.
        dtype: of weights and activations; latents are always float32.
    """

    def __init__(self, encoder: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        self.layers = nn.ModuleList(_convert(module) for module in encoder.layers)
        for layer in self.layers:
            if isinstance(layer, nn.ELU):
                layer.inplace = True  # nothing else reads its input
        self.to(dtype)

    def forward(self, wav: Tensor) -> Tensor:
        hidden = wav[:, :, None].to(self.dtype)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden.transpose(1, 2).float()


class _Convolution(nn.Module):
    """A 1-D convolution over [B, T, C] with EnCodec's reflecting pads."""

    weight: Tensor
    bias: Tensor

    def __init__(self, source: Any) -> None:
        super().__init__()
        conv = source.conv
        self.stride, self.dilation = conv.stride[0], conv.dilation[0]
        self.reach = (conv.kernel_size[0] - 1) * self.dilation + 1
        self.is_pointwise = self.reach == 1 and self.stride == 1
        weight = conv.weight.detach()
        if self.is_pointwise:
            weight = weight[:, :, 0].contiguous()
        else:
            weight = weight[:, :, None].contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", conv.bias.detach(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_pointwise:
            return F.linear(x, self.weight, self.bias)
        total = self.reach - self.stride
        frames = math.ceil(max(x.shape[1] - self.reach + total, 0) / self.stride) + 1
        extra = (frames - 1) * self.stride + self.reach - total - x.shape[1]
        x = reflect(x, total - total // 2, total // 2 + extra)
        image = x[:, None].permute(0, 3, 1, 2)  # [B, C, 1, T], channels last in memory
        out = F.conv2d(image, self.weight, self.bias, (1, self.stride), 0, (1, self.dilation))
        return out.permute(0, 2, 3, 1)[:, 0]


class _Residual(nn.Module):
    def __init__(self, source: Any) -> None:
        super().__init__()
        self.block = nn.ModuleList(_convert(module) for module in source.block)
        for layer in self.block[1:]:
            if isinstance(layer, nn.ELU):
                layer.inplace = True  # not the first: the shortcut reads its input too
        shortcut = source.shortcut
        self.shortcut = None if isinstance(shortcut, nn.Identity) else _convert(shortcut)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x
        for layer in self.block:
            hidden = layer(hidden)
        return hidden.add_(x if self.shortcut is None else self.shortcut(x))


class _Lstm(nn.Module):
    def __init__(self, source: Any) -> None:
        super().__init__()
        lstm = source.lstm
        self.lstm = nn.LSTM(lstm.input_size, lstm.hidden_size, lstm.num_layers)
        self.lstm.load_state_dict(lstm.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        steps = x.transpose(0, 1)
        return (self.lstm(steps)[0] + steps).transpose(0, 1)


def _convert(module: Any) -> nn.Module:
    kinds = {"EncodecConv1d": _Convolution, "EncodecResnetBlock": _Residual, "EncodecLSTM": _Lstm}
    if isinstance(module, nn.ELU):
        return nn.ELU(module.alpha)
    return kinds[type(module).__name__](module)


def reflect(x: Tensor, left: int, right: int) -> Tensor:
    """Reflect [B, T, C] at both ends; like EnCodec, add zeros first if the input is too short."""
    length = x.shape[1]
    missing = max(left, right) - length + 1
    if missing > 0:
        padded = reflect(F.pad(x, (0, 0, 0, missing)), left, right)
        return padded[:, : padded.shape[1] - missing]
    out = x.new_empty(x.shape[0], left + length + right, x.shape[2])
    out[:, left : left + length] = x
    if left:
        out[:, :left] = x[:, 1 : left + 1].flip(1)
    if right:
        out[:, left + length :] = x[:, length - 1 - right : length - 1].flip(1)
    return out
