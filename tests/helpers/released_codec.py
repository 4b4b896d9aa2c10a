"""Random codecs in the released EnCodec's configuration, and the comparison with transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import EncodecConfig, EncodecModel

from common.codec import load_codec

RELEASED: dict[str, Any] = {  # config.json of facebook/encodec_32khz
    "audio_channels": 1,
    "chunk_length_s": None,
    "codebook_dim": 128,
    "codebook_size": 2048,
    "compress": 2,
    "dilation_growth_rate": 2,
    "hidden_size": 128,
    "kernel_size": 7,
    "last_kernel_size": 7,
    "model_type": "encodec",
    "norm_type": "weight_norm",
    "normalize": False,
    "num_filters": 64,
    "num_lstm_layers": 2,
    "num_residual_layers": 1,
    "overlap": None,
    "pad_mode": "reflect",
    "residual_kernel_size": 3,
    "sampling_rate": 32000,
    "target_bandwidths": [2.2],
    "trim_right_ratio": 1.0,
    "upsampling_ratios": [8, 5, 4, 4],
    "use_causal_conv": False,
    "use_conv_shortcut": False,
}
SMALL: dict[str, Any] = {
    "num_filters": 4,
    "hidden_size": 16,
    "codebook_dim": 16,
    "codebook_size": 64,
    "target_bandwidths": [1.2],  # 4 x 6 bits x 50 Hz
}


def make_codec(seed: int = 0, **sizes: Any) -> Any:
    """A random codec in the released configuration, whose codewords are frames of noise."""
    torch.manual_seed(seed)
    model: Any = EncodecModel(EncodecConfig.from_dict(RELEASED | sizes)).eval()
    rate = model.config.sampling_rate
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("original0"):  # else |v| = g, and swapping them would not show
                parameter.mul_(torch.rand_like(parameter) + 0.5)
        wav = torch.randn(4, 1, rate // 2) * torch.linspace(0, 1, rate // 2)
        latents = model.encoder(wav).transpose(1, 2).flatten(0, 1)
        size = model.config.codebook_size
        for layer in model.quantizer.layers:
            picks = latents[torch.randint(len(latents), (size,))]
            layer.codebook.embed.copy_(picks + 0.1 * picks.std() * torch.randn_like(picks))
            layer.codebook.embed_avg.copy_(layer.codebook.embed)
            layer.codebook.cluster_size.fill_(1.0)
            latents = latents - layer.decode(layer.encode(latents.T[None]))[0].T
    return model


def released_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights as Meta's files name them: weight norm as `weight_g` and `weight_v`."""
    norm = "parametrizations.weight.original"
    return {
        name.replace(f"{norm}0", "weight_g").replace(f"{norm}1", "weight_v"): value
        for name, value in state.items()
    }


def audio(model: Any, seconds: float = 0.7) -> Tensor:
    """Noise that grows, `[2, S]`."""
    samples = round(seconds * model.config.sampling_rate)
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, samples, generator=generator) * torch.linspace(0, 1, samples)


def assert_same_codec(folder: Path, theirs: Any, seconds: float = 0.7) -> None:
    """Our codec in `folder` and their model give the same codes and waveforms."""
    ours = load_codec(str(folder))
    wav = audio(theirs, seconds)
    with torch.inference_mode():
        expected = theirs.encode(wav[:, None])
        decoded = theirs.decode(expected.audio_codes, expected.audio_scales).audio_values[:, 0]
    codes = ours.encode(wav)
    assert len(codes.unique()) > 10  # else equality says nothing
    assert torch.equal(codes, expected.audio_codes[0])
    torch.testing.assert_close(ours.decode(codes), decoded, atol=1e-5, rtol=1e-4)
