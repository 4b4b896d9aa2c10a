"""From prompts to waveforms.

- The KV cache is allocated once; cross-attention keys and values are computed once.
- Guidance runs both halves in one doubled batch; the unconditional half skips cross-attention, as
  in training.
- Every clip draws from a generator of its own: prompt and seed decide it, not what it is made with.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.codec import Codec, codec_identity, load_codec
from common.config import Recipe
from common.errors import AttuneError
from common.prompts import normalize_prompts
from common.text_encoder import TextEncoder, load_text_encoder, text_encoder_identity
from training.checkpoint import latest_checkpoint, load_for_inference
from training.config import SamplingConfig
from training.lm.attention import Backend, masked_attention
from training.lm.model import Block, LanguageModel
from training.lm.patterns import delayed_steps, undelay

Report = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


class Sampler:
    """A trained model with the codec and text encoder it belongs to."""

    def __init__(
        self,
        model: LanguageModel,
        description: dict[str, Any],
        codec: Codec,
        encoder: TextEncoder,
        checkpoint: Path,
        device: torch.device,
    ) -> None:
        self.model = model.to(device)
        self.description = description
        self.codec = codec
        self.encoder = encoder
        self.checkpoint = checkpoint
        self.device = device

    @classmethod
    def load(cls, recipe: Recipe, run: str | Path, device: str | torch.device = "cpu") -> Sampler:
        """The newest checkpoint's EMA weights of a training run.

        Args:
            recipe: names codec and text encoder, which must be those the model was trained with.
            run: folder of the run, e.g. `runs/demo/lm`.
            device: where to sample.

        Raises:
            AttuneError: no checkpoint, or it belongs to another codec or text encoder.
        """
        run = Path(run)
        checkpoint = latest_checkpoint(run)
        if checkpoint is None:
            raise AttuneError(f"{run}: no trained model there; run `python -m training lm` first")
        model, description = load_for_inference(checkpoint)
        check_belongs(recipe, description, checkpoint)
        device = torch.device(device)
        codec = load_codec(recipe.codec.path, device)
        encoder = load_text_encoder(recipe.text_encoder, device)
        return cls(model, description, codec, encoder, checkpoint, device)

    @property
    def trained_s(self) -> float:
        """Longest duration the model was trained on, in seconds, up to the end of its frame."""
        rate = self.codec.frame_rate
        return longest_frames(self.description, rate) / rate

    def normalize(self, prompts: Sequence[str]) -> list[str]:
        """Prompts in the form that the model was trained on.

        Raises:
            AttuneError: nothing of a prompt remains.
        """
        normalized = normalize_prompts(prompts, self.description["prompt_policy"])
        for prompt, rest in zip(prompts, normalized, strict=True):
            if not rest:
                raise AttuneError(
                    f"prompt {prompt!r}: nothing remains without stop words and numbers; "
                    "name the sound"
                )
        return normalized

    def generate(
        self,
        prompts: Sequence[str],
        duration_s: float,
        seeds: Sequence[int],
        sampling: SamplingConfig | None = None,
        report: Report | None = None,
        normalized: bool = False,
    ) -> tuple[list[NDArray[np.float32]], NDArray[np.int16]]:
        """Generate a clip per prompt.

        Args:
            prompts: as a user writes them, or, if `normalized`, in training form already.
            duration_s: seconds of each clip.
            seeds: one per clip.
            sampling: guidance, top-k, temperature, batch size; the defaults if None.
            report: told about each step.
            normalized: take the prompts as they are, e.g. those of the shards: pseudo-sentences
                of tags are in training form without having been lemmatized.

        Returns:
            Waveforms float32 `[S]` at the codec's rate, and codes int16 `[N, K, T]`.

        Raises:
            AttuneError: nothing remains of a prompt, or the duration is too long to trust.
        """
        sampling = sampling or SamplingConfig()
        if duration_s > self.trained_s:
            raise AttuneError(
                f"duration {duration_s:g} s is longer than the {self.trained_s:g} s that "
                f"{self.checkpoint} was trained on"
            )
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts, {len(seeds)} seeds")
        frames = max(1, round(duration_s * self.codec.frame_rate))
        texts = list(prompts) if normalized else self.normalize(prompts)
        states = self.encoder.encode(texts)
        keys = [draw_key(seed, text) for seed, text in zip(seeds, texts, strict=True)]
        steps = delayed_steps(frames, self.codec.n_codebooks)
        size = sampling.batch_size
        starts = range(0, len(prompts), size)
        made = []
        for index, start in enumerate(starts):

            def tell(
                step: int, done: int = index * steps, total: int = steps * len(starts)
            ) -> None:
                if report:
                    report(done + step, total)

            part = slice(start, start + size)
            made.append(sample_codes(self.model, states[part], keys[part], frames, sampling, tell))
        codes = torch.cat(made)
        wavs = [self.codec.decode(clip[None])[0].cpu().numpy() for clip in codes]
        return wavs, codes.cpu().numpy().astype(np.int16)


def longest_frames(description: dict[str, Any], frame_rate: float) -> int:
    """Frames of the longest clip that a model was trained on, by its `model.json`."""
    seconds = float(description.get("trained_s", description["segment_s"]))
    return math.ceil(round(seconds * frame_rate, 6))


def check_belongs(recipe: Recipe, description: dict[str, Any], checkpoint: Path) -> None:
    """Refuse another codec or text encoder than the model was trained with.

    Args:
        description: the checkpoint's `model.json`.

    Raises:
        AttuneError: naming both sides.
    """
    for what, key, found, where in (
        ("codec", "codec_id", codec_identity(recipe.codec.path), recipe.codec.path),
        (
            "text encoder",
            "text_encoder_id",
            text_encoder_identity(recipe.text_encoder),
            recipe.text_encoder.path,
        ),
    ):
        if description[key] != found:
            raise AttuneError(
                f"checkpoint {checkpoint} was trained with {what} {description[key]}, but "
                f"{where} in the recipe is {found}; name the {what} it was trained with"
            )


def draw_key(seed: int, prompt: str) -> tuple[int, int]:
    """Seeds the draws of a clip: clips of other prompts (in training form) get other noise."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=8).digest()
    return seed, int.from_bytes(digest, "little")


@torch.inference_mode()
def sample_codes(
    model: LanguageModel,
    states: Sequence[NDArray[np.float16]],
    seeds: Sequence[int | Sequence[int]],
    frames: int,
    sampling: SamplingConfig,
    report: Callable[[int], None] | None = None,
) -> Tensor:
    """Sample a batch of clips.

    Args:
        model: in eval mode.
        states: text states `[L_i, D]` of each clip's prompt.
        seeds: one per clip, each what `numpy.random.default_rng` takes.
        frames: T.
        sampling: guidance, top-k, temperature.
        report: called with the number of steps done.

    Returns:
        int64 codes `[B, K, T]`.
    """
    arch = model.arch
    device = next(model.parameters()).device
    steps = delayed_steps(frames, arch.n_codebooks)
    decoder = Decoder(model, states, steps, guided=sampling.cfg != 1.0)
    # One uniform number per code, drawn beforehand: [steps, K] per clip, in the order of use, so
    # that a longer clip of the same seed begins alike (up to the delay's last frames).
    draws = torch.from_numpy(
        np.stack([np.random.default_rng(seed).random((steps, arch.n_codebooks)) for seed in seeds])
    ).to(device)
    delayed = torch.full(
        (len(states), arch.n_codebooks, steps), arch.special, dtype=torch.long, device=device
    )
    column = delayed.new_full((len(states), arch.n_codebooks), arch.special)
    streams = torch.arange(arch.n_codebooks, device=device)
    for step in range(steps):
        logits = decoder.step(column)
        if sampling.cfg != 1.0:
            conditional, unconditional = logits.chunk(2)
            logits = unconditional + sampling.cfg * (conditional - unconditional)
        codes = choose(logits, draws[:, step], sampling.top_k, sampling.temperature)
        # Streams that have not begun, or are complete, stay special.
        valid = (step >= streams) & (step - streams < frames)
        column = torch.where(valid, codes, arch.special)
        delayed[:, :, step] = column
        if report:
            report(step + 1)
    return undelay(delayed, frames)


def choose(logits: Tensor, draws: Tensor, top_k: int, temperature: float) -> Tensor:
    """Top-k sampling by inverting the cumulative distribution.

    Args:
        logits: `[B, K, V]`.
        draws: uniform in [0, 1), `[B, K]`.
        top_k: codes in question; all if there are fewer.
        temperature: 0 takes the likeliest.

    Returns:
        int64 `[B, K]`.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    values, indices = logits.double().topk(min(top_k, logits.shape[-1]), dim=-1)
    cumulative = torch.softmax(values / temperature, dim=-1).cumsum(dim=-1)
    place = torch.searchsorted(cumulative, (draws * cumulative[..., -1])[..., None], right=True)
    return indices.gather(-1, place.clamp(max=values.shape[-1] - 1))[..., 0]


class Decoder:
    """One step at a time over a preallocated cache.

    With guidance the rows are the clips with their text, then the same clips without.
    """

    def __init__(
        self,
        model: LanguageModel,
        states: Sequence[NDArray[np.float16]],
        steps: int,
        guided: bool,
    ) -> None:
        arch, weight = model.arch, model.head.weight
        self._model = model
        self._clips = len(states)
        self._copies = 2 if guided else 1
        self._step = 0
        head = arch.d_model // arch.n_heads
        shape = (arch.n_layers, 2, self._clips * self._copies, arch.n_heads, steps, head)
        self._cache = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        length = max(len(state) for state in states)
        text = torch.zeros(self._clips, length, arch.text_dim, device=weight.device)
        mask = torch.zeros(self._clips, length, dtype=torch.bool, device=weight.device)
        for i, state in enumerate(states):
            text[i, : len(state)] = torch.from_numpy(state.astype(np.float32))
            mask[i, : len(state)] = True
        context, bias = model.context(text, mask)
        assert context is not None and bias is not None
        self._bias = bias
        # One query per row: plain products beat the fused kernel on CPUs.
        self._backend: Backend = "matmul" if weight.device.type == "cpu" else "auto"
        self._blocks = [block for block in model.blocks if isinstance(block, Block)]
        self._text = [block.cross_attention.keys_values(context) for block in self._blocks]

    def step(self, column: Tensor) -> Tensor:
        """Append one column of codes `[B, K]`; logits `[B or 2B, K, V]` of the next."""
        x = self._model.embed(column[:, :, None], start=self._step)
        x = x.repeat(self._copies, 1, 1)
        for block, cache, text in zip(self._blocks, self._cache, self._text, strict=True):
            x = x + self._self_attention(block, block.norm_self(x), cache)
            # Only the rows with text: for the others cross-attention adds exactly zero.
            told = x[: self._clips]
            told += block.cross_attention.attend(block.norm_cross(told), *text, self._bias)
            x = x + block.feed_forward(x)
        self._step += 1
        return self._model.logits(self._model.norm(x))[:, 0]

    def _self_attention(self, block: Block, x: Tensor, cache: Tensor) -> Tensor:
        q, k, v = block.self_attention.split(x)
        keys, values = cache[0], cache[1]
        keys[:, :, self._step : self._step + 1] = k
        values[:, :, self._step : self._step + 1] = v
        so_far = slice(0, self._step + 1)
        y = masked_attention(q, keys[:, :, so_far], values[:, :, so_far], None, self._backend)
        return block.self_attention.out(y.transpose(1, 2).flatten(2))
