"""Sampling against Hugging Face's MusicGen, and the cost of a step of a long clip.

Both sides have the same weights, number of steps and text tokens, guidance 3 and top-k 250, in one
process, and take turns; the best round counts. Their side is
`MusicgenForConditionalGeneration.generate` with its defaults (fp32), without the codec, and with
one small layer as text encoder. Ours is what `training.sampling.sampler` runs, with its weights as
fp32, bf16 and int8.

    python -m benchmarks.sampling --config configs/demo.yaml

reports for a trained model how many codes smaller weights change: each step's choice, with the same
draw after the same codes, against the choice with fp32 weights.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
import typer
from numpy.typing import NDArray

from benchmarks.lm_step import FRAMES, TEXT_DIM, TOKENS, architecture
from benchmarks.measure import Result, Row, in_turns
from benchmarks.musicgen import Musicgen
from common.allocator import keep_freed_memory
from common.cli import ConfigOption, run_app
from common.config import load_recipe
from training.config import LMConfig
from training.interop.musicgen import to_musicgen
from training.lm.model import Architecture, LanguageModel
from training.lm.patterns import delayed_steps
from training.sampling.config import SamplingConfig
from training.sampling.decoder import Decoder, DecodingWeights
from training.sampling.draw import choose, draw
from training.sampling.loop import sample_codes, stream_codes
from training.sampling.packed import Kind, default_kind, processor_of
from training.sampling.sampler import Sampler

KINDS: tuple[Kind, ...] = ("fp32", "bf16", "int8")
BATCHES = (1, 4)
ROUNDS = 3
LONG = 1500
SAMPLING = SamplingConfig(cfg=3.0, top_k=250)


def bench() -> Result:
    """Sampling, and the cost of a step of a long clip."""
    found: dict[str, Any] = {}
    rows: list[Row] = []
    aims = {"tiny": ("at most 0.30", "at most 0.40"), "60M": ("at most 0.40", "at most 0.50")}
    for size, exact in aims.items():
        one = found[size] = run_size(size)
        for clips, aim in zip(BATCHES, exact, strict=True):
            ratio, speed = one[f"batch_{clips}"]["ratio"], one[f"batch_{clips}"]["frames_per_s"]
            title = f"sampling, {size}, batch {clips}, fp32 / Hugging Face's"
            rows.append((title, ratio["fp32"], aim))
            for kind in ("bf16", "int8"):
                default = kind == default_kind(processor_of(torch.device("cpu")), clips)
                wanted = "at most 0.28" if default and (size, clips) == ("60M", 1) else "-"
                name = f"  ours in {kind}{', the default' if default else ''}"
                rows.append((name, ratio[kind], wanted))
            text = ", ".join(f"{value:.0f}" for value in speed.values())
            rows.append((f"  frames/s: {', '.join(speed)}", text, "-"))
    costs = found["ms_per_step_at_frame"] = step_costs("60M")
    text = ", ".join(f"{at}: {ms:.1f}" for at, ms in costs.items())
    rows.append(("ms per step of 60M, fp32, batch 1, at frame", text, "flat except for attention"))
    return found, rows


def _model(size: str) -> LanguageModel:
    model = LanguageModel(architecture(size)).eval().requires_grad_(False)
    model.initialize(0)
    return model


def run_size(size: str) -> dict[str, Any]:
    """Frames per second of each side, and the ratios of our time to theirs, by batch size."""
    keep_freed_memory()
    model = _model(size)
    ours = {kind: DecodingWeights(model, kind) for kind in KINDS}
    theirs = _Theirs(model)
    found: dict[str, Any] = {"attention": theirs.attention}
    for clips in BATCHES:
        states, keys = text_states(clips), list(range(clips))
        runs: dict[str, Callable[[], object]] = {"Hugging Face": partial(theirs.generate, clips)}
        for kind, weights in ours.items():
            runs[kind] = partial(sample_codes, weights, states, keys, FRAMES, SAMPLING)
        best = in_turns(runs, ROUNDS)
        found[f"batch_{clips}"] = {
            "frames_per_s": {name: round(clips * FRAMES / s, 1) for name, s in best.items()},
            "ratio": {kind: round(best[kind] / best["Hugging Face"], 3) for kind in KINDS},
        }
    return found


class _Theirs:
    """`MusicgenForConditionalGeneration` with our decoder's weights, as the library sets it up."""

    def __init__(self, model: LanguageModel) -> None:
        arch = model.arch
        decoder = Musicgen(arch)
        decoder.load_state_dict(to_musicgen(model.state_dict(), arch))
        # Only the decoder is to be timed: one small layer encodes the text, and no codec runs.
        one_layer: dict[str, Any] = {"num_layers": 1, "num_heads": 2, "d_ff": 32, "vocab_size": 100}
        text = transformers.T5Config(d_model=TEXT_DIM, **one_layer)
        codec = transformers.EncodecConfig(num_filters=4, hidden_size=8, codebook_dim=8)
        config = transformers.MusicgenConfig(
            text_encoder=text, audio_encoder=codec, decoder=decoder.decoder.config
        )
        self._model: Any = transformers.MusicgenForConditionalGeneration(config).eval()
        self._model.decoder.load_state_dict(decoder.decoder.state_dict())
        self._model.audio_encoder.decode = lambda codes, **_: SimpleNamespace(audio_values=codes)
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


def text_states(clips: int) -> list[NDArray[np.float16]]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((TOKENS, TEXT_DIM)).astype(np.float16) for _ in range(clips)]


def step_costs(size: str) -> dict[str, float]:
    """Milliseconds per step near some frames of one long clip, in fp32: medians of 100 steps."""
    times, began = [], time.perf_counter()
    for _ in stream_codes(DecodingWeights(_model(size)), text_states(1), [0], LONG, SAMPLING):
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
) -> dict[str, dict[str, float]]:
    """Share of codes that stay the same as in fp32, by kind of weights: the sampled codes, and the
    likeliest codes."""
    arch: Architecture = model.arch
    steps = delayed_steps(frames, arch.n_codebooks)
    keys = list(range(len(states)))
    draws = draw(keys, steps, arch.n_codebooks)
    grid = torch.empty(0)
    exact = DecodingWeights(model)
    for _, grid in stream_codes(exact, states, keys, frames, SAMPLING):  # noqa: B007
        pass
    chosen: dict[str, list[torch.Tensor]] = {}
    for kind in KINDS:
        decoder = Decoder(DecodingWeights(model, kind), states, steps, guided=True)
        column = torch.full_like(grid[:, :, 0], arch.special)
        for step in range(steps):
            conditional, unconditional = decoder.step(column).chunk(2)
            logits = torch.lerp(unconditional, conditional, SAMPLING.cfg)
            drawn = choose(logits, draws[:, step], SAMPLING.top_k, SAMPLING.temperature)
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


def trained_agreement(config: ConfigOption) -> None:
    """Print how many codes of a trained run (`lm.run`) smaller weights change."""
    recipe = load_recipe(config)
    name = recipe.section("lm", LMConfig).run
    sampler = Sampler.load(recipe, Path(recipe.run_dir) / name)
    prompts = ["dog bark", "rain", "church bell ring", "wind", "siren", "bird sing", "dog bark"]
    states = sampler.encoder.encode([*prompts, "rain"])
    frames = round(sampler.trained_s * sampler.codec.frame_rate)
    shares = agreement(sampler.model, states, frames)
    print(json.dumps({"run": name, "frames": frames, **shares}, indent=2))


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(trained_agreement)
    run_app(app)
