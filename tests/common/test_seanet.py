"""The encoder laid out for speed against Hugging Face's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import EncodecConfig, EncodecModel

from common.codec import fold_weight_norm, load_codec
from common.seanet import FastEncoder, supports


def encoder(**settings: Any) -> Any:
    torch.manual_seed(0)
    config = EncodecConfig(
        **{
            "audio_channels": 1, "num_filters": 4, "hidden_size": 12, "codebook_dim": 12,
            "upsampling_ratios": [8, 5, 4, 2], "use_causal_conv": False, "normalize": False,
        } | settings
    )  # fmt: skip
    model: Any = EncodecModel(config)
    model.eval().requires_grad_(False)
    fold_weight_norm(model)
    return model.encoder


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"upsampling_ratios": [8, 5, 4, 4], "num_lstm_layers": 1},
        {"num_residual_layers": 3, "use_conv_shortcut": False},
        {"kernel_size": 5, "last_kernel_size": 3, "dilation_growth_rate": 3},
    ],
)
def test_latents_equal_transformers_for_any_length(settings: dict[str, Any]) -> None:
    theirs = encoder(**settings)
    assert supports(theirs)
    ours = FastEncoder(theirs)
    with torch.inference_mode():
        for samples in (1, 2, 7, 319, 320, 321, 640, 5000):
            wav = torch.randn(3, samples)
            expected = theirs(wav[:, None])
            found = ours(wav)
            assert found.shape == expected.shape
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_other_encoders_are_left_to_transformers() -> None:
    assert not supports(encoder(use_causal_conv=True))
    assert not supports(encoder(pad_mode="constant"))


def test_the_shipped_codec_gives_the_same_codes() -> None:
    codec = load_codec("builtin:sfx-small")
    assert codec.fast_encoder is not None
    rng = np.random.default_rng(0)
    t = np.arange(32_000) / 16_000
    wavs = [
        np.float32(0.3 * np.sin(2 * np.pi * f * t) + 0.05 * rng.standard_normal(32_000))
        for f in np.geomspace(100, 6000, 24)
    ]
    together = np.stack(codec.encode_clips(wavs))
    alone = np.stack([codec.encode_track(wav) for wav in wavs])
    codec.fast_encoder = None
    theirs = np.stack([codec.encode_track(wav) for wav in wavs])
    assert together.shape == (24, 4, 100)
    assert (alone == theirs).mean() >= 0.999
    assert (together == alone).mean() >= 0.999
