"""Decodes codes chunk by chunk; all chunks together are the waveform of one whole pass.

EnCodec's decoder is a convolution over frames, an LSTM, and convolutions that upsample frames to
samples. The LSTM continues from its state. The convolutions see a few frames on either side, so a
chunk is decoded with its neighbours and waits for the next ones. The result differs from a whole
pass only by rounding (1e-5 of full scale, tested).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from common.codec import Codec
from common.errors import AttuneError

AROUND = 8
"""Frames on either side that the last convolutions may see. The paper's codecs, with one residual
layer per stage, need fewer than two."""


class StreamingDecoder:
    """Decodes one batch of clips from the first frame to the last."""

    def __init__(self, codec: Codec) -> None:
        """
        Raises:
            AttuneError: the decoder has another structure.
        """
        layers: Any = codec.model.decoder.layers
        names = [type(layer).__name__ for layer in layers[:2]]
        if names != ["EncodecConv1d", "EncodecLSTM"] or codec.model.config.norm_type != (
            "weight_norm"
        ):
            raise AttuneError(
                f"codec {codec.codec_id}: streams only with a convolution and an LSTM first and "
                f"without group norm; found {', '.join(names)}"
            )
        self._codec = codec
        self._first, self._lstm = layers[0], layers[1].lstm
        self._rest = nn.Sequential(*layers[2:])
        self._reach = int(codec.model.config.kernel_size) // 2 + 1
        self._state: tuple[Tensor, Tensor] | None = None
        self._latents: Tensor | None = None  # [B, D, frames so far]
        self._hidden: Tensor | None = None  # [B, C, frames that the LSTM has seen]
        self._given = 0

    @torch.inference_mode()
    def push(self, codes: Tensor, last: bool = False) -> Tensor:
        """Add frames; return the samples that can be decoded now.

        Args:
            codes: int64 `[B, K, t]`, t may be 0.
            last: these are the last frames: everything that remains is returned.

        Returns:
            float32 `[B, n * hop]`, n >= 0 frames; all calls together return the whole clip.
        """
        codec = self._codec
        if codes.shape[-1]:
            latents = codec.model.quantizer.decode(codes.to(codec.device).transpose(0, 1))
            parts = [latents] if self._latents is None else [self._latents, latents]
            self._latents = torch.cat(parts, dim=-1)
        if self._latents is None:
            return torch.zeros(len(codes), 0, device=codec.device)
        self._run_lstm(last)
        return self._decode(last)

    def _run_lstm(self, last: bool) -> None:
        assert self._latents is not None
        seen = 0 if self._hidden is None else self._hidden.shape[-1]
        end = self._latents.shape[-1] - (0 if last else self._reach)
        if end <= seen:
            return
        low = max(0, seen - self._reach)
        window = self._first(self._latents[:, :, low : end + self._reach])
        steps = window[:, :, seen - low : end - low].permute(2, 0, 1)
        found, self._state = self._lstm(steps, self._state)
        hidden = (found + steps).permute(1, 2, 0)
        parts = [hidden] if self._hidden is None else [self._hidden, hidden]
        self._hidden = torch.cat(parts, dim=-1)

    def _decode(self, last: bool) -> Tensor:
        codec, hop = self._codec, self._codec.hop
        hidden = self._hidden
        end = 0 if hidden is None else hidden.shape[-1] - (0 if last else AROUND)
        if hidden is None or end <= self._given:
            assert self._latents is not None
            return torch.zeros(len(self._latents), 0, device=codec.device)
        low = max(0, self._given - AROUND)
        wav: Tensor = self._rest(hidden[:, :, low : end + AROUND])[:, 0]
        wav = wav[:, (self._given - low) * hop : (end - low) * hop]
        self._given = end
        return wav
