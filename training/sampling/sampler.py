"""From prompts to waveforms: a trained model with the codec and text encoder it belongs to.

Prompt and seed of a clip decide its draws, whatever else is in its batch.  The sampling loop is in
`loop.py`, the choice of codes in `draw.py`, the decoder's single steps are in `decoder.py`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from common.codec import Codec, load_codec
from common.config import Recipe
from common.errors import AttuneError
from common.prompts import PromptForm, normalize_prompts, recorded_form
from common.streaming import StreamingDecoder
from common.text_encoder import TextEncoder, count_tokens, cut_off, load_text_encoder
from training.checkpoint.load import load_for_inference
from training.data import check_made_with
from training.lm.model import LanguageModel
from training.lm.patterns import delayed_steps, undelay
from training.run.folder import latest_checkpoint
from training.sampling.config import DRAWS, SamplingConfig
from training.sampling.decoder import DecodingWeights
from training.sampling.loop import sample_codes, stream_codes
from training.sampling.packed import Kind, default_kind, processor_of

LICENCE = (
    "no licence comes with this clip: what may be done with it follows from the licences of the "
    "data that the model was trained on"
)

Report = Callable[[int, int], None]
"""Called with (steps done, total steps)."""


def check_prompts(
    prompts: Sequence[str], form: PromptForm | None, sources: Sequence[str] = ()
) -> list[str]:
    """Prompts in a form of prompts; as they are if it is None.

    Args:
        sources: FILE:LINE of each prompt, for messages.

    Raises:
        AttuneError: a prompt has no words left.
    """
    normalized = normalize_prompts(prompts, form) if form else list(prompts)
    for prompt, rest, source in zip_longest(prompts, normalized, sources):
        if not rest.strip():
            raise AttuneError(
                f"{f'{source}: ' if source else ''}prompt {prompt!r}: nothing remains without stop "
                "words and numbers; name the sound"
            )
    return normalized


@dataclass(eq=False)
class Sampler:
    """A trained model with the codec and text encoder that it was trained with."""

    model: LanguageModel
    description: dict[str, Any]
    """The checkpoint's `model.json`."""
    codec: Codec
    encoder: TextEncoder
    checkpoint: Path
    device: torch.device

    def __post_init__(self) -> None:
        self.model.to(self.device)
        self._packed: DecodingWeights | None = None

    @classmethod
    def load(cls, recipe: Recipe, run: str | Path, device: str | torch.device = "cpu") -> Sampler:
        """Load the EMA weights of a run's newest checkpoint.

        Args:
            recipe: names codec and text encoder, which must be those the model was trained with.
            run: folder of the run, e.g. `runs/demo/lm`.
            device: where to sample.

        Raises:
            AttuneError: no checkpoint, or another codec or text encoder than in training.
        """
        run = Path(run)
        checkpoint = latest_checkpoint(run)
        if checkpoint is None:
            raise AttuneError(
                f"{run}: no trained model there; train one first: python -m training lm --config "
                f"{recipe.source_file}"
            )
        model, description = load_for_inference(checkpoint)
        whose = f"checkpoint {checkpoint} was trained with"
        check_made_with(recipe.codec.path, recipe.text_encoder, description, whose)
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
        """The same settings, with `weights: auto` replaced by the weights that it stands for.

        Call this before clips are made that must be made the same way again later, or whose
        settings are written down.

        Args:
            clips: number of clips that are made together.
        """
        if sampling.weights != "auto":
            return sampling
        kind = default_kind(processor_of(self.device), clips)
        return sampling.model_copy(update={"weights": kind})

    def facts(self, sampling: SamplingConfig) -> dict[str, Any]:
        """For a clip's sidecar: how it is made, with settings from `settled`."""
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

    def normalize(
        self, prompts: Sequence[str], *, as_is: bool = False, sources: Sequence[str] = ()
    ) -> list[str]:
        """Prompts as the model hears them: in the form of its training, or unchanged if `as_is`.

        Args:
            sources: FILE:LINE of each prompt, for messages.

        Raises:
            AttuneError: a prompt has no words left.
        """
        return check_prompts(prompts, None if as_is else recorded_form(self.description), sources)

    def unheard(self, heard: Sequence[str]) -> list[list[str]]:
        """What the text encoder does not take in of each prompt (from `normalize`), in words."""
        tokenizer, longest = self.encoder.tokenizer, self.encoder.max_length
        counts = count_tokens(tokenizer, heard)
        found: list[list[str]] = [[] for _ in heard]
        for i, text in enumerate(heard):
            if counts.tokens[i] > longest:
                found[i].append(
                    f"the text encoder takes {longest} of the {counts.tokens[i]} tokens of "
                    f"{text!r}; cut off: {cut_off(tokenizer, text, longest)}"
                )
            if counts.mostly_unknown[i]:
                found[i].append(
                    f"the text encoder does not know {counts.unknown[i]} of the "
                    f"{counts.tokens[i] - counts.special} tokens of {text!r}"
                )
        return found

    def caption_of(self, prompt: str, captions: Sequence[str]) -> str | None:
        """The caption from which a prompt in training form was made; None if there is none."""
        made = normalize_prompts(captions, recorded_form(self.description))
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
        as_is: bool = False,
    ) -> tuple[list[NDArray[np.float32]], NDArray[np.int16]]:
        """Generate a clip per prompt.

        Args:
            prompts: as a user writes them; in training form if `normalized`.
            duration_s: seconds of each clip; clips longer than `trained_s` are sampled in sliding
                windows.
            seeds: one per clip.
            sampling: how codes are drawn; the defaults if None.
            report: called after each step.
            normalized: take the prompts as they are, for example prompts out of the shards, where
                pseudo-sentences of tags are not lemmatized.
            continue_from: waveform float32 `[S]` at the codec's rate that every clip begins with.
            as_is: take the prompts and the negative prompt as they are.

        Returns:
            Waveforms float32 `[S]` at the codec's rate, and codes int16 `[N, K, T]`.

        Raises:
            AttuneError: a prompt has no words left, or the clip to continue is empty or too long.
        """
        sampling = sampling or SamplingConfig()
        sampling = self.settled(sampling, min(len(prompts), sampling.batch_size))
        clips = self._clips(prompts, duration_s, seeds, sampling, normalized, continue_from, as_is)
        known = 0 if clips["prefix"] is None else clips["prefix"].shape[-1]
        steps = delayed_steps(clips["frames"], self.codec.n_codebooks) - known
        starts = range(0, len(prompts), sampling.batch_size)
        done, total = count(1), steps * len(starts)
        tell = None if report is None else lambda _: report(next(done), total)
        made = []
        for start in starts:
            rows = slice(start, start + sampling.batch_size)
            part = {"states": clips["states"][rows], "keys": clips["keys"][rows]}
            made.append(sample_codes(**(clips | part), report=tell))
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
        as_is: bool = False,
    ) -> Iterator[NDArray[np.float32]]:
        """Generate clips, and yield their sound while they are made; arguments as for `generate`.

        Args:
            prompts: all made together, whatever `sampling.batch_size` is.
            chunk_s: seconds of sound that are decoded at a time.

        Yields:
            float32 `[N, n]`; joined, they equal `generate`'s waveforms except for rounding
            (`common.streaming`).
        """
        sampling = self.settled(sampling or SamplingConfig(), len(prompts))
        clips = self._clips(prompts, duration_s, seeds, sampling, normalized, continue_from, as_is)
        frames, given = clips["frames"], 0
        decoder = StreamingDecoder(self.codec)
        every = max(1, round(chunk_s * self.codec.frame_rate))
        for done, grid in stream_codes(**clips):
            last = done == frames
            if done - given >= every or last:
                codes = undelay(grid, frames)[:, :, given:done]
                given = done
                wav = decoder.push(codes, last)
                if wav.shape[1]:
                    yield wav.cpu().numpy()

    def _clips(
        self,
        prompts: Sequence[str],
        duration_s: float,
        seeds: Sequence[int],
        sampling: SamplingConfig,
        normalized: bool,
        continue_from: NDArray[np.float32] | None,
        as_is: bool,
    ) -> dict[str, Any]:
        """Arguments of `stream_codes` for these clips."""
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
                    f"{duration_s:g} s, which includes that clip; raise the duration"
                )
        texts = list(prompts) if normalized else self.normalize(prompts, as_is=as_is)
        negative = None
        if sampling.negative_prompt:
            heard = self.normalize([sampling.negative_prompt], as_is=as_is)
            negative = self.encoder.encode(heard)[0]
        return {
            "weights": self._weights(sampling.weights),
            "states": self.encoder.encode(texts),
            "keys": [draw_key(seed, text) for seed, text in zip(seeds, texts, strict=True)],
            "frames": frames,
            "sampling": sampling,
            "negative": negative,
            "prefix": prefix,
            "window": max(2, round(self.trained_s * rate)),
        }

    def _weights(self, kind: Kind | Literal["auto"]) -> DecodingWeights:
        assert kind != "auto", "call `settled` first"
        if self._packed is None or self._packed.kind != kind:
            self._packed = None  # free the memory first
            self._packed = DecodingWeights(self.model, kind)
        return self._packed


def longest_frames(description: dict[str, Any], frame_rate: float) -> int:
    """Frames of the longest clip that a model was trained on.

    Args:
        description: the checkpoint's `model.json`.
        frame_rate: of the codec, in Hz.
    """
    return math.ceil(round(float(description["trained_s"]) * frame_rate, 6))


def draw_key(seed: int, prompt: str) -> tuple[int, int]:
    """Seed of a clip's draws: clips of different prompts (in training form) get different noise."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=8).digest()
    return seed, int.from_bytes(digest, "little")
