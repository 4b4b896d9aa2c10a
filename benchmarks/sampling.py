"""Sampling against Hugging Face's MusicGen, and what a step of a long clip costs.

    python -m benchmarks.sampling [--sizes tiny 60M] [--rounds 3] [--threads 2]
    python -m benchmarks.sampling --config configs/demo.yaml    # codes that smaller weights change

The same weights, number of steps and text tokens, guidance 3 and top-k 250 on both sides, in one
process, taking turns; the best round counts.  Theirs is `MusicgenForConditionalGeneration.generate`
as it comes (fp32), without the codec, and with one small layer for a text encoder.  Ours is what
`training.sampling.sampler` runs, with its weights as fp32, bf16 and int8.

How many codes smaller weights change is reported for a trained model: each step's choice, with the
same draw after the same codes, against the choice with fp32 weights.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.lm import FRAMES, TEXT_DIM, TOKENS, architecture
from benchmarks.musicgen import Musicgen
from common.allocator import keep_freed_memory
from common.config import load_recipe
from training.config import LMConfig
from training.interop.musicgen import to_musicgen
from training.lm.model import Architecture, LanguageModel
from training.lm.patterns import delayed_steps
from training.sampling.config import SamplingConfig
from training.sampling.decoder import Decoder, DecodingWeights
from training.sampling.draw import choose, draw
from training.sampling.loop import sample_codes, stream_codes
from training.sampling.packed import Kind
from training.sampling.sampler import Sampler

KINDS: tuple[Kind, ...] = ("fp32", "bf16", "int8")
BATCHES = (1, 4)
ROUNDS = 3
LONG = 1500
SAMPLING = SamplingConfig(cfg=3.0, top_k=250)


def run_size(size: str, threads: int, rounds: int = ROUNDS) -> dict[str, Any]:
    """One size.

    Returns:
        per batch size frames per second of each side and the ratios of our time to theirs.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    arch = architecture(size)
    model = LanguageModel(arch).eval().requires_grad_(False)
    model.initialize(0)
    ours = {kind: DecodingWeights(model, kind) for kind in KINDS}
    theirs = _Theirs(model)
    found: dict[str, Any] = {"size": size, "threads": threads, "attention": theirs.attention}
    for clips in BATCHES:
        states = text_states(clips)

        def sample(weights: DecodingWeights, states: list[NDArray[np.float16]] = states) -> None:
            sample_codes(weights, states, list(range(len(states))), FRAMES, SAMPLING)

        runs: dict[str, Callable[[], object]] = {
            **{kind: lambda weights=ours[kind]: sample(weights) for kind in KINDS},  # type: ignore
            "Hugging Face": lambda clips=clips: theirs.generate(clips),  # type: ignore
        }
        best = dict.fromkeys(runs, float("inf"))
        for turn in range(rounds):
            for name in list(runs) if turn % 2 else list(runs)[::-1]:
                began = time.perf_counter()
                runs[name]()
                best[name] = min(best[name], time.perf_counter() - began)
        found[f"batch_{clips}"] = {
            "frames_per_s": {name: round(clips * FRAMES / s, 1) for name, s in best.items()},
            "ratio": {kind: round(best[kind] / best["Hugging Face"], 3) for kind in KINDS},
        }
    return found


class _Theirs:
    """`MusicgenForConditionalGeneration` over our decoder's weights, as the library sets it up."""

    def __init__(self, model: LanguageModel) -> None:
        from transformers import (
            EncodecConfig,
            MusicgenConfig,
            MusicgenForConditionalGeneration,
            T5Config,
        )

        arch = model.arch
        decoder = Musicgen(arch)
        decoder.load_state_dict(to_musicgen(model.state_dict(), arch))
        # One small layer encodes the text once, and nobody decodes: the decoder is what is timed.
        text = T5Config(d_model=TEXT_DIM, num_layers=1, num_heads=2, d_ff=32, vocab_size=100)
        codec = EncodecConfig(num_filters=4, hidden_size=8, codebook_dim=8)
        config = MusicgenConfig(
            text_encoder=text, audio_encoder=codec, decoder=decoder.decoder.config
        )
        self._model: Any = MusicgenForConditionalGeneration(config).eval()
        self._model.decoder.load_state_dict(decoder.decoder.state_dict())
        self._model.audio_encoder.decode = lambda codes, **_: _Audio(codes)
        settings = self._model.generation_config
        settings.bos_token_id = settings.pad_token_id = arch.special
        settings.decoder_start_token_id = arch.special
        settings.do_sample, settings.use_cache = True, True
        settings.guidance_scale, settings.top_k = SAMPLING.cfg, SAMPLING.top_k
        self._steps = delayed_steps(FRAMES, arch.n_codebooks)

    @property
    def attention(self) -> str:
        return str(self._model.decoder.config._attn_implementation)

    @torch.inference_mode()
    def generate(self, clips: int) -> torch.Tensor:
        text = torch.randint(2, 100, (clips, TOKENS))
        codes: torch.Tensor = self._model.generate(
            input_ids=text, attention_mask=torch.ones_like(text), max_new_tokens=self._steps
        )
        return codes


class _Audio:
    def __init__(self, codes: torch.Tensor) -> None:
        self.audio_values = codes


def text_states(clips: int) -> list[NDArray[np.float16]]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((TOKENS, TEXT_DIM)).astype(np.float16) for _ in range(clips)]


def step_costs(size: str, threads: int, kind: Kind = "fp32") -> dict[str, float]:
    """Milliseconds per step around some frames of one long clip, medians of 100 steps."""
    torch.set_num_threads(threads)
    model = LanguageModel(architecture(size)).eval().requires_grad_(False)
    model.initialize(0)
    times, began = [], time.perf_counter()
    for _ in stream_codes(DecodingWeights(model, kind), text_states(1), [0], LONG, SAMPLING):
        now = time.perf_counter()
        times.append(now - began)
        began = now
    places = (100, 400, 700, 1000, 1250, LONG - 50)
    return {str(at): round(1000 * float(np.median(times[at - 50 : at + 50])), 3) for at in places}


@torch.inference_mode()
def agreement(
    model: LanguageModel,
    states: list[NDArray[np.float16]],
    frames: int,
    sampling: SamplingConfig = SAMPLING,
) -> dict[str, dict[str, float]]:
    """Share of codes that stay the same, by kind of weights: sampled, and the likeliest only."""
    arch: Architecture = model.arch
    steps = delayed_steps(frames, arch.n_codebooks)
    keys = list(range(len(states)))
    draws = draw(keys, steps, arch.n_codebooks)
    grid = torch.empty(0)
    exact = DecodingWeights(model)
    for _, grid in stream_codes(exact, states, keys, frames, sampling):  # noqa: B007
        pass
    chosen: dict[str, list[torch.Tensor]] = {}
    for kind in KINDS:
        decoder = Decoder(DecodingWeights(model, kind), states, steps, guided=True)
        column = torch.full_like(grid[:, :, 0], arch.special)
        for step in range(steps):
            conditional, unconditional = decoder.step(column).chunk(2)
            logits = torch.lerp(unconditional, conditional, sampling.cfg)
            drawn = choose(logits, draws[:, step], sampling.top_k, sampling.temperature)
            chosen.setdefault(f"{kind} sampled", []).append(drawn)
            chosen.setdefault(f"{kind} likeliest", []).append(logits.argmax(-1))
            column = grid[:, :, step]
    valid = grid != arch.special
    found: dict[str, dict[str, float]] = {}
    for kind in KINDS[1:]:
        found[kind] = {}
        for what in ("sampled", "likeliest"):
            pairs = [torch.stack(chosen[f"{k} {what}"], -1) for k in ("fp32", kind)]
            same = (pairs[0] == pairs[1])[valid]
            found[kind][what] = round(float(same.float().mean()), 4)
    return found


def trained_agreement(config: str, run: str = "", clips: int = 8) -> dict[str, Any]:
    """`agreement` of a trained run, with prompts that it can be given."""
    recipe = load_recipe(config, [])
    name = run or recipe.section("lm", LMConfig).run
    sampler = Sampler.load(recipe, Path(recipe.run_dir) / name)
    prompts = ["dog bark", "rain", "church bell ring", "wind", "siren", "bird sing"]
    prompts = (prompts * clips)[:clips]
    states = sampler.encoder.encode(prompts)
    frames = round(sampler.trained_s * sampler.codec.frame_rate)
    return {"run": name, "frames": frames, **agreement(sampler.model, states, frames)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sizes", nargs="+", choices=("tiny", "60M"), default=["tiny", "60M"])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--config", help="count how smaller weights change a trained run's codes")
    parser.add_argument("--run", default="", help="of that recipe (default: lm.run)")
    options = parser.parse_args()
    if options.config:
        print(json.dumps(trained_agreement(options.config, options.run), indent=2))
        return
    for size in options.sizes:
        found = run_size(size, options.threads, options.rounds)
        found["ms_per_step_at_frame"] = {
            kind: step_costs(size, options.threads, kind) for kind in ("fp32", "bf16")
        }
        print(json.dumps(found, indent=2), flush=True)


if __name__ == "__main__":
    main()
