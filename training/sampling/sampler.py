"""From prompts to waveforms: a trained model with the codec and text encoder it belongs to.

Every clip has draws of its own, which its prompt and seed decide, not what it is made with.
How codes are drawn is in `sampling.py`, how the decoder is run for them in `decoding.py`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.codec import Codec, codec_identity, load_codec
from common.config import Recipe, TextEncoderConfig
from common.errors import AttuneError
from common.prompts import PromptPolicy, normalize_prompts
from common.streaming import StreamingDecoder
from common.text_encoder import TextEncoder, load_text_encoder, text_encoder_identity
from training.checkpoint.load import load_for_inference
from training.lm.model import LanguageModel
from training.lm.patterns import delayed_steps, undelay
from training.run.folder import latest_checkpoint
from training.sampling.config import DRAWS, SamplingConfig
from training.sampling.decoder import DecodingWeights
from training.sampling.draw import sample_codes, stream_codes
from training.sampling.packed import Kind, default_kind, processor_of

LICENCE = (
    "no licence comes with this clip: what may be done with it follows from the licences of the "
    "data that the model was trained on"
)

Report = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


def check_prompts(prompts: Sequence[str], policy: PromptPolicy) -> list[str]:
    """Prompts in the form of a policy.

    Raises:
        AttuneError: nothing of a prompt remains.
    """
    normalized = normalize_prompts(prompts, policy)
    for prompt, rest in zip(prompts, normalized, strict=True):
        if not rest:
            raise AttuneError(
                f"prompt {prompt!r}: nothing remains without stop words and numbers; name the sound"
            )
    return normalized


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
        self._packed: DecodingWeights | None = None

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
        check_belongs(recipe.codec.path, recipe.text_encoder, description, checkpoint)
        device = torch.device(device)
        codec = load_codec(recipe.codec.path, device)
        encoder = load_text_encoder(recipe.text_encoder, device)
        return cls(model, description, codec, encoder, checkpoint, device)

    @property
    def trained_s(self) -> float:
        """Longest duration the model was trained on, in seconds, up to the end of its frame."""
        rate = self.codec.frame_rate
        return longest_frames(self.description, rate) / rate

    def settled(self, sampling: SamplingConfig, clips: int) -> SamplingConfig:
        """The same settings, with the weights that `auto` stands for.

        Args:
            clips: made at a time.

        Whoever makes some of them again later, or writes down how they were made, settles first.
        """
        if sampling.weights != "auto":
            return sampling
        kind = default_kind(processor_of(self.device), clips)
        return sampling.model_copy(update={"weights": kind})

    def facts(self, sampling: SamplingConfig) -> dict[str, Any]:
        """What a clip's sidecar says of how it was made (`settled`), prompt and seed apart."""
        started = self.checkpoint.parent.parent / "config.json"
        config = started.read_bytes() if started.is_file() else b""
        return {
            "checkpoint": str(self.checkpoint),
            "step": self.description["step"],
            "config_hash": hashlib.blake2b(config, digest_size=8).hexdigest() if config else None,
            "codec_id": self.codec.codec_id,
            "text_encoder_id": self.encoder.text_encoder_id,
            "draws": DRAWS,
            **sampling.model_dump(exclude={"duration_s", "batch_size"}),
            "licence": LICENCE,
        }

    def normalize(self, prompts: Sequence[str]) -> list[str]:
        """Prompts in the form that the model was trained on.

        Raises:
            AttuneError: nothing of a prompt remains.
        """
        return check_prompts(prompts, self.description["prompt_policy"])

    def caption_of(self, prompt: str, captions: Sequence[str]) -> str | None:
        """The one of a clip's captions that a prompt in training form was made of, if any."""
        made = normalize_prompts(captions, self.description["prompt_policy"])
        return next((c for c, plain in zip(captions, made, strict=True) if plain == prompt), None)

    def generate(
        self,
        prompts: Sequence[str],
        duration_s: float,
        seeds: Sequence[int],
        sampling: SamplingConfig | None = None,
        report: Report | None = None,
        normalized: bool = False,
        continue_from: NDArray[np.float32] | None = None,
    ) -> tuple[list[NDArray[np.float32]], NDArray[np.int16]]:
        """Generate a clip per prompt.

        Args:
            prompts: as a user writes them, or, if `normalized`, in training form already.
            duration_s: seconds of each clip; past what the model was trained for (`trained_s`) it
                is sampled in sliding windows.
            seeds: one per clip.
            sampling: how codes are drawn; the defaults if None.
            report: called after each step.
            normalized: take the prompts as they are, e.g. those of the shards: pseudo-sentences
                of tags are in training form without having been lemmatized.
            continue_from: waveform float32 `[S]` at the codec's rate that every clip begins with.

        Returns:
            Waveforms float32 `[S]` at the codec's rate, and codes int16 `[N, K, T]`.

        Raises:
            AttuneError: nothing remains of a prompt, or the clip to continue is too long.
        """
        sampling = sampling or SamplingConfig()
        sampling = self.settled(sampling, min(len(prompts), sampling.batch_size))
        jobs = self._jobs(prompts, duration_s, seeds, sampling, normalized, continue_from)
        steps = delayed_steps(jobs.frames, self.codec.n_codebooks) - jobs.known
        size = sampling.batch_size
        starts = range(0, len(prompts), size)
        made = []
        for index, start in enumerate(starts):

            def tell(
                step: int, done: int = index * steps, total: int = steps * len(starts)
            ) -> None:
                if report:
                    report(done + step, total)

            arguments = jobs.part(slice(start, start + size))
            made.append(sample_codes(**arguments, sampling=sampling, report=tell))
        codes = torch.cat(made)
        wavs = [self.codec.decode(clip[None])[0].cpu().numpy() for clip in codes]
        return wavs, codes.cpu().numpy().astype(np.int16)

    def stream(
        self,
        prompts: Sequence[str],
        duration_s: float,
        seeds: Sequence[int],
        sampling: SamplingConfig | None = None,
        *,
        normalized: bool = False,
        continue_from: NDArray[np.float32] | None = None,
        chunk_s: float = 0.5,
    ) -> Iterator[NDArray[np.float32]]:
        """Generate clips and hand their sound out while they are made; arguments as `generate`'s.

        Args:
            prompts: made together, whatever `sampling.batch_size` says.
            chunk_s: seconds of sound after which some is decoded.

        Yields:
            float32 `[N, n]`, which put together are `generate`'s waveforms but for rounding
            (`common.streaming`).
        """
        sampling = self.settled(sampling or SamplingConfig(), len(prompts))
        jobs = self._jobs(prompts, duration_s, seeds, sampling, normalized, continue_from)
        arguments = jobs.part(slice(None))
        decoder, given = StreamingDecoder(self.codec), 0
        every = max(1, round(chunk_s * self.codec.frame_rate))
        for done, grid in stream_codes(**arguments, sampling=sampling):
            last = done == jobs.frames
            if done - given >= every or last:
                codes = undelay(grid, jobs.frames)[:, :, given:done]
                given = done
                wav = decoder.push(codes, last)
                if wav.shape[1]:
                    yield wav.cpu().numpy()

    def _jobs(
        self,
        prompts: Sequence[str],
        duration_s: float,
        seeds: Sequence[int],
        sampling: SamplingConfig,
        normalized: bool,
        continue_from: NDArray[np.float32] | None,
    ) -> _Jobs:
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts, {len(seeds)} seeds")
        rate = self.codec.frame_rate
        frames = max(1, round(duration_s * rate))
        prefix = None
        if continue_from is not None:
            if not len(continue_from):
                raise AttuneError("the clip to continue is empty")
            found = torch.from_numpy(self.codec.encode_track(continue_from).astype(np.int64))
            prefix = found[None].to(self.device)
            if prefix.shape[-1] >= frames:
                raise AttuneError(
                    f"the clip to continue is {prefix.shape[-1] / rate:g} s long and the duration "
                    f"{duration_s:g} s, that clip included; ask for more"
                )
        texts = list(prompts) if normalized else self.normalize(prompts)
        negative = None
        if sampling.negative_prompt:
            negative = self.encoder.encode(self.normalize([sampling.negative_prompt]))[0]
        return _Jobs(
            self._weights(sampling.weights),
            self.encoder.encode(texts),
            [draw_key(seed, text) for seed, text in zip(seeds, texts, strict=True)],
            frames,
            negative,
            prefix,
            max(2, round(self.trained_s * rate)),
        )

    def _weights(self, kind: Kind | Literal["auto"]) -> DecodingWeights:
        assert kind != "auto", "settle first"
        if self._packed is None or self._packed.kind != kind:
            self._packed = None  # before the next ones take memory
            self._packed = DecodingWeights(self.model, kind)
        return self._packed


@dataclass(frozen=True)
class _Jobs:
    """What `stream_codes` wants to know of all clips."""

    weights: DecodingWeights
    states: Sequence[NDArray[np.float16]]
    keys: Sequence[tuple[int, int]]
    frames: int
    negative: NDArray[np.float16] | None
    prefix: Tensor | None
    window: int

    @property
    def known(self) -> int:
        """Frames of the clip to continue."""
        return 0 if self.prefix is None else self.prefix.shape[-1]

    def part(self, rows: slice) -> dict[str, Any]:
        """Arguments for some of the clips."""
        states = self.states[rows]
        prefix = None if self.prefix is None else self.prefix.expand(len(states), -1, -1)
        return {
            "weights": self.weights,
            "states": states,
            "keys": self.keys[rows],
            "frames": self.frames,
            "negative": self.negative,
            "prefix": prefix,
            "window": self.window,
        }


def longest_frames(description: dict[str, Any], frame_rate: float) -> int:
    """Frames of the longest clip that a model was trained on, by its `model.json`."""
    seconds = float(description["trained_s"])
    return math.ceil(round(seconds * frame_rate, 6))


def check_belongs(
    codec: str, encoder: TextEncoderConfig, description: dict[str, Any], checkpoint: Path
) -> None:
    """Refuse another codec or text encoder than the model was trained with.

    Args:
        codec, encoder: as in the recipe.
        description: the checkpoint's `model.json`.

    Raises:
        AttuneError: naming both sides.
    """
    for what, key, found, where in (
        ("codec", "codec_id", codec_identity(codec), codec),
        ("text encoder", "text_encoder_id", text_encoder_identity(encoder), encoder.path),
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
