"""Decoding a few frames at a time gives the waveform of one pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_lm import make_codec
from transformers import EncodecConfig, EncodecModel

from common.codec import Codec, load_codec
from common.errors import AttuneError
from common.streaming import StreamingDecoder


def _random(codec: Codec, clips: int, frames: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames)
    shape = (clips, codec.n_codebooks, frames)
    return torch.randint(codec.codebook_size, shape, generator=generator)


def _streamed(codec: Codec, codes: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    decoder = StreamingDecoder(codec)
    parts, at = [], 0
    for size in sizes:
        parts.append(decoder.push(codes[:, :, at : at + size]))
        at += size
    parts.append(decoder.push(codes[:, :, at:], last=True))
    return torch.cat(parts, dim=1)


CUTS = [[], [1] * 60, [7, 0, 30, 3], [59], [60], [2, 50]]
SHORT = [(frames, [1] * (frames - 1)) for frames in (1, 2, 5, 9, 10, 14)]


@pytest.mark.parametrize(("frames", "sizes"), [*((60, sizes) for sizes in CUTS), *SHORT])
def test_any_cut_gives_the_same_waveform(tmp_path: Path, frames: int, sizes: list[int]) -> None:
    make_codec(tmp_path)
    codec = load_codec(str(tmp_path))
    codes = _random(codec, 2, frames)
    found = _streamed(codec, codes, sizes)
    torch.testing.assert_close(found, codec.decode(codes), atol=1e-5, rtol=0)


def test_the_shipped_codec_streams() -> None:
    codec = load_codec("builtin:sfx-small")
    codes = _random(codec, 1, 200)
    whole = codec.decode(codes)
    assert whole.abs().max() > 0.01
    torch.testing.assert_close(_streamed(codec, codes, [25] * 7), whole, atol=1e-5, rtol=0)


def test_the_first_sound_comes_soon() -> None:
    codec = load_codec("builtin:sfx-small")
    decoder = StreamingDecoder(codec)
    first = decoder.push(_random(codec, 1, 25))
    assert first.shape[1] >= 12 * codec.hop


def test_another_decoder_is_refused(tmp_path: Path) -> None:
    config = EncodecConfig(
        num_filters=4, hidden_size=8, codebook_dim=8, norm_type="time_group_norm"
    )
    codec = Codec(EncodecModel(config).eval(), "0", torch.device("cpu"))
    with pytest.raises(AttuneError, match="streams only with"):
        StreamingDecoder(codec)
