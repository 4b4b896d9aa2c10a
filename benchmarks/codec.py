"""The codec's encoder at the paper's 16 kHz size, against the two that others wrote.

    python -m benchmarks.codec [--threads 2]

Waveform to codes by `common.codec`, by transformers' `EncodecModel` and, where it is installed
(extra `bench`), by `encodec`, all with the same random weights, taking turns.  The same encoder in
bfloat16 takes turns as well.  The share of codes that it changes is reported for these weights and,
as random weights say little about that, for the shipped codec on the embedded corpus.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

ROUNDS = 5
SECONDS = 10.0


def run_encoder(threads: int, batches: tuple[int, ...] = (1, 4)) -> dict[str, Any]:
    """Seconds per batch, best of `ROUNDS` taken in turns, by batch size."""
    from common.codec import Codec, fold_weight_norm
    from common.seanet import FastEncoder
    from training.codec.config import CodecArchitecture
    from training.codec.model import build_model
    from training.codec.quantizer import ResidualQuantizerTrainer

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = build_model(CodecArchitecture(), 16_000).eval().requires_grad_(False)
    wav = torch.randn(max(batches), int(SECONDS * 16_000)) * 0.2
    with torch.inference_mode():
        # Codebooks of zeros would make every code 0: place them on latents.
        quantizer = ResidualQuantizerTrainer(model.quantizer, 0.99, 0.0)
        quantizer.start(model.encoder(wav[:, None]), torch.Generator().manual_seed(0), iterations=2)
    peers: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
    if importlib.util.find_spec("encodec") is not None:
        peers["encodec"] = _encodec(model)
    fold_weight_norm(model)
    device = torch.device("cpu")
    ours = Codec(model, "", device, FastEncoder(model.encoder)).encode
    half = Codec(model, "", device, FastEncoder(model.encoder, torch.bfloat16)).encode
    peers["transformers"] = Codec(model, "", device).encode
    found: dict[str, Any] = {"threads": threads, "seconds_per_clip": SECONDS}
    for size in batches:
        batch = wav[:size]
        runs = {"ours": ours, "ours in bfloat16": half, **peers}
        times: dict[str, list[float]] = {name: [] for name in runs}
        with torch.inference_mode():
            codes = {name: encode(batch) for name, encode in runs.items()}
            for _ in range(ROUNDS):
                for name, encode in runs.items():
                    began = time.perf_counter()
                    encode(batch)
                    times[name].append(time.perf_counter() - began)
        best = {name: min(values) for name, values in times.items()}
        peer = min(peers, key=best.__getitem__)
        found[f"batch_{size}"] = {
            "seconds": {name: round(value, 4) for name, value in best.items()},
            "best_peer": peer,
            "ratio": round(best["ours"] / best[peer], 3),
            "bfloat16_ratio": round(best["ours in bfloat16"] / best["ours"], 3),
            "equal_codes": {
                name: round(float((codes[name] == codes["ours"]).float().mean()), 6)
                for name in runs
                if name != "ours"
            },
        }
    return found


def _encodec(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """`encodec`'s own modules with the weights of a transformers model (weight norm on)."""
    from encodec.modules import SEANetEncoder

    config = model.config
    encoder = SEANetEncoder(
        channels=1, dimension=config.hidden_size, n_filters=config.num_filters,
        ratios=list(config.upsampling_ratios), norm="weight_norm", causal=False,
        lstm=config.num_lstm_layers, pad_mode="reflect", true_skip=False,
    )  # fmt: skip
    # The same layers in the same order under other names.
    target = encoder.state_dict()
    source = model.encoder.state_dict()
    assert len(source) == len(target)
    theirs = sorted(source, key=_position)
    ours = sorted(target, key=_position)
    encoder.load_state_dict(
        {a: source[b].reshape(target[a].shape) for a, b in zip(ours, theirs, strict=True)}
    )
    encoder.eval().requires_grad_(False)

    def encode(wav: torch.Tensor) -> torch.Tensor:
        return model.quantizer.encode(encoder(wav[:, None])).transpose(0, 1)

    return encode


def _position(name: str) -> tuple[Any, ...]:
    """Sorts parameters alike in both namings: numbers as numbers, gain, then direction."""
    renamed = (
        name.replace("parametrizations.weight.original0", "weight_g")
        .replace("parametrizations.weight.original1", "weight_v")
        .replace("model.", "").replace("layers.", "").replace("conv.conv.", "conv.")
    )  # fmt: skip
    return tuple(int(part) if part.isdigit() else part for part in renamed.split("."))


def bfloat16_share(clips: int = 64) -> dict[str, Any]:
    """Share of the codes that the shipped codec changes in bfloat16, on clips of the embedded
    corpus; in all and by stream.  `refused` where this processor's bfloat16 is wrong for it."""
    from common.codec import load_codec
    from common.errors import AttuneError
    from pipeline.corpus.sounds import CLASSES, draw_params, render

    found = []
    try:
        codecs = [load_codec("builtin:sfx-small", precision=p) for p in ("float32", "bfloat16")]
    except AttuneError as error:
        return {"refused": str(error)}
    for i in range(clips):
        rng = np.random.default_rng(i)
        wave = render([CLASSES[i % len(CLASSES)]], 4.0, [draw_params(rng)], rng)
        whole, half = (codec.encode_track(wave) for codec in codecs)
        found.append((whole != half).mean(axis=1))
    streams = np.mean(found, axis=0)
    return {
        "clips": clips,
        "differ": round(float(streams.mean()), 4),
        "by_stream": [round(float(share), 4) for share in streams],
    }


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    found = run_encoder(options.threads) | {"bfloat16_shipped_codec": bfloat16_share()}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
