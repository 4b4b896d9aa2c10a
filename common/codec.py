"""EnCodec at run time: it loads a Hugging Face `EncodecModel` folder and codes waveforms with it.

`codec_id` is the hash of the folder's two files. Shards and checkpoints store it, so results of
different codecs are never mixed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.bfloat16 import check_bfloat16
from common.codec_files import codec_identity as codec_identity
from common.codec_files import readable
from common.codec_files import resolve_codec as resolve_codec
from common.config import Precision
from common.errors import AttuneError
from common.hub import check_complete, loading
from common.seanet import FastEncoder, supports

WINDOW_S = 30.0
"""Longer clips are encoded in windows; each window contributes this many seconds of codes."""
LEFT_CONTEXT_S = 4.0
"""Encoded before each window and discarded: the left-to-right LSTM needs time to settle."""
RIGHT_CONTEXT_FRAMES = 50
"""Encoded after each window and discarded: the convolutions look ahead."""

_TRAINING_ONLY = ("codebook.cluster_size", "codebook.embed_avg", "codebook.inited")


def load_codec(
    path: str, device: str | torch.device = "cpu", precision: Precision = "float32"
) -> Codec:
    """Load a codec for inference.

    Args:
        path: `builtin:NAME`, a folder, or a hub id.

    Raises:
        AttuneError: missing or unsupported codec, or this processor computes bfloat16 wrongly.
    """
    from transformers import EncodecConfig, EncodecModel

    exact_float32(torch.device(device))
    folder = resolve_codec(path)
    with readable(path, folder / "config.json"):
        text = (folder / "config.json").read_bytes()
    try:
        settings = json.loads(text)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise AttuneError(f"codec {path!r}: {folder / 'config.json'} is not a JSON object")
    if settings.get("model_type") != "encodec":
        raise AttuneError(
            f"codec {path!r}: model_type is {settings.get('model_type')!r}, expected 'encodec'"
        )
    config = EncodecConfig.from_dict(settings)
    if config.normalize or config.chunk_length_s or config.audio_channels != 1:
        raise AttuneError(
            f"codec {path!r}: only mono codecs without input normalization or chunking are "
            "supported (the paper's 16 and 32 kHz ones)"
        )
    loader: Any = EncodecModel  # typed as if it only returned a model
    with loading(f"codec {path!r}"):
        model, loaded = loader.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    # Weights that only codebook training reads may be absent.
    needed = [key for key in loaded["missing_keys"] if not key.endswith(_TRAINING_ONLY)]
    check_complete(needed, f"codec {path!r}: {folder / 'model.safetensors'}")
    fold_weight_norm(model)
    keep_numbers_on_host(model)
    model.requires_grad_(False)
    model.eval()
    # FastEncoder was only measured on CPUs; on GPUs Hugging Face's own modules run.
    fast = torch.device(device).type == "cpu" and supports(model.encoder)
    dtype = getattr(torch, precision)
    model.to(device)
    encoder = FastEncoder(model.encoder, dtype) if fast else None
    codec = Codec(model, codec_identity(path), torch.device(device), encoder)
    if dtype != torch.float32:
        wav = 0.1 * torch.randn(1, codec.sample_rate, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            exact = model.encoder(wav[:, None].to(device))
        if not fast:
            model.encoder.to(dtype)
        what, remedy = f"the encoder of {path}", "set pipeline.precision=float32"
        check_bfloat16(what, exact, codec.latents(wav), remedy)
    return codec


@dataclass
class Codec:
    """A frozen codec on one device."""

    model: Any  # an EncodecModel; torch does not type submodules
    codec_id: str
    device: torch.device
    fast_encoder: FastEncoder | None = None
    """Replaces the model's own encoder; its latents only differ by rounding."""

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return int(self.model.config.sampling_rate)

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return math.prod(self.model.config.upsampling_ratios)

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop

    @property
    def n_codebooks(self) -> int:
        """K, the number of residual streams."""
        return int(self.model.quantizer.num_quantizers)

    @property
    def codebook_size(self) -> int:
        """Codes per stream."""
        return int(self.model.config.codebook_size)

    @torch.inference_mode()
    def encode(self, wav: Tensor) -> Tensor:
        """Waveforms to codes.

        Args:
            wav: float32 [B, S] at `sample_rate`.

        Returns:
            int64 [B, K, T], T = ceil(S / hop).
        """
        return self.model.quantizer.encode(self.latents(wav)).transpose(0, 1)

    @torch.inference_mode()
    def latents(self, wav: Tensor) -> Tensor:
        """Waveforms float32 [B, S] to latents (not quantized) float32 [B, D, ceil(S / hop)]."""
        wav = wav.to(self.device)
        if self.fast_encoder is not None:
            return self.fast_encoder(wav)
        dtype = next(self.model.encoder.parameters()).dtype
        return self.model.encoder(wav[:, None].to(dtype)).float()

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes to waveforms.

        Args:
            codes: int64 [B, K, T], every value below `codebook_size`.

        Returns:
            float32 [B, T * hop].
        """
        latents = self.model.quantizer.decode(codes.to(self.device).transpose(0, 1))
        return self.model.decoder(latents)[:, 0]

    def encode_clips(self, wavs: Sequence[NDArray[np.float32]]) -> list[NDArray[np.int16]]:
        """Encode clips of one length, at most `WINDOW_S`, in one batch, which is faster.

        Fewer than 0.1% of the codes differ from those of `encode_track`, by rounding. On one
        machine they are a function of the whole batch.

        Args:
            wavs: float32 [S] each, all of the same S, at `sample_rate`.

        Returns:
            int16 [K, ceil(S / hop)] each.
        """
        batch = torch.from_numpy(np.stack(wavs).astype(np.float32, copy=False))
        return list(self.encode(batch).to(torch.int16).cpu().numpy())

    def is_short(self, wav: NDArray[np.float32]) -> bool:
        """Whether a clip is encoded in one piece."""
        keep = round(WINDOW_S * self.frame_rate)
        return math.ceil(len(wav) / self.hop) <= keep + RIGHT_CONTEXT_FRAMES

    def encode_track(self, wav: NDArray[np.float32]) -> NDArray[np.int16]:
        """Encode one clip of any length; its codes only depend on the clip.

        A clip longer than `WINDOW_S` is cut at exact multiples of the hop. Each window is encoded
        with `LEFT_CONTEXT_S` before it and `RIGHT_CONTEXT_FRAMES` after it, and the codes of this
        context are discarded.

        Args:
            wav: float32 [S] at `sample_rate`, S >= 1.

        Returns:
            int16 [K, ceil(S / hop)].
        """
        if self.is_short(wav):
            return self.encode_clips([wav])[0]
        samples = torch.from_numpy(np.ascontiguousarray(wav, np.float32))
        total = math.ceil(len(samples) / self.hop)
        keep = round(WINDOW_S * self.frame_rate)
        left = round(LEFT_CONTEXT_S * self.frame_rate)
        pieces = []
        for start in range(0, total, keep):
            stop = min(total, start + keep)
            first = max(0, start - left)
            last = min(total, stop + RIGHT_CONTEXT_FRAMES)
            window = samples[first * self.hop : last * self.hop]
            codes = self.encode(window[None])[0]
            pieces.append(codes[:, start - first : stop - first])
        return torch.cat(pieces, dim=1).to(torch.int16).cpu().numpy()


def fold_weight_norm(model: torch.nn.Module) -> None:
    """Replace weight-norm parametrizations by plain weights (same outputs)."""
    from torch.nn.utils import parametrize

    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")


def exact_float32(device: torch.device) -> None:
    """Make GPUs compute float32 as CPUs do.

    By default cuDNN rounds the inputs of convolutions and LSTMs to TF32's 10 bits, which changes
    codes near a decision border.
    """
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False


def keep_numbers_on_host(model: nn.Module) -> None:
    """Keep an `EncodecModel`'s strides and paddings, which its layers hold as tensors, on the CPU.
    On a GPU each layer would wait for the device to read them: 72 times per pass of an encoder."""
    for module in model.modules():
        for name in ("stride", "kernel_size", "padding_total"):
            value = module._buffers.pop(name, None)
            if value is not None:
                setattr(module, name, torch.tensor(int(value)))
