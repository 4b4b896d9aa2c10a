"""The codec's encoder at the paper's 16 kHz size, against two encoders that others wrote.

Waveform to codes by `common.codec`, by transformers' `EncodecModel` and, if it is installed (extra
`bench`), by `encodec`. All have the same random weights and take turns, our encoder in bfloat16
too. Random weights say little about how many codes bfloat16 changes, so that share is also
reported for the shipped codec on the embedded corpus.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import Result, Row, in_turns
from common.codec import Codec, fold_weight_norm, load_codec
from common.errors import AttuneError
from common.seanet import FastEncoder
from pipeline.corpus.sounds import CLASSES, draw_params, render
from training.codec.config import CodecArchitecture
from training.codec.model import build_model
from training.codec.quantizer import ResidualQuantizerTrainer

ROUNDS = 5
BATCHES = (1, 4)
SECONDS = 10


def bench() -> Result:
    """The codec's encoder at the paper's size."""
    found: dict[str, Any] = {"seconds_per_clip": SECONDS}
    rows: list[Row] = []
    model, wav = paper_codec()
    peers: dict[str, Callable[[Tensor], Tensor]] = {}
    if importlib.util.find_spec("encodec") is not None:
        peers["encodec"] = _encodec(model)
    fold_weight_norm(model)
    device = torch.device("cpu")
    peers["transformers"] = Codec(model, "", device).encode
    encoders = {
        "ours": Codec(model, "", device, FastEncoder(model.encoder)).encode,
        "ours in bfloat16": Codec(
            model, "", device, FastEncoder(model.encoder, torch.bfloat16)
        ).encode,
        **peers,
    }
    for size in BATCHES:
        runs = {name: partial(encode, wav[:size]) for name, encode in encoders.items()}
        codes = {name: run() for name, run in runs.items()}
        with torch.inference_mode():
            best = in_turns(runs, ROUNDS)
        peer = min(peers, key=best.__getitem__)
        equal = {
            name: round(float((other == codes["ours"]).float().mean()), 6)
            for name, other in codes.items()
        }
        ratio = round(best["ours"] / best[peer], 3)
        bfloat16_ratio = round(best["ours in bfloat16"] / best["ours"], 3)
        found[f"batch_{size}"] = {
            "seconds": {name: round(value, 4) for name, value in best.items()},
            "best_peer": peer,
            "ratio": ratio,
            "bfloat16_ratio": bfloat16_ratio,
            "equal_codes": equal,
        }
        rows += [
            (f"codec, 16 kHz, {size} x {SECONDS} s / {peer}", ratio, "at most 0.80"),
            ("  equal codes, share, worst peer", min(equal[p] for p in peers), "at least 0.999"),
            ("  in bfloat16 / in float32", bfloat16_ratio, "about 0.5"),
        ]
    shipped = found["bfloat16_shipped_codec"] = bfloat16_share()
    title = "codes that bfloat16 changes, shipped codec, share"
    return found, [*rows, (title, shipped.get("differ", "refused"), "no bound")]


def paper_codec() -> tuple[Any, Tensor]:
    """An `EncodecModel` of the paper's 16 kHz size with random weights, and noise.

    The codewords are placed on latents of the noise. With codebooks of zeros every code would be 0.

    Returns:
        The model (with weight norm), and float32 [4, 10 s].
    """
    torch.manual_seed(0)
    model = build_model(CodecArchitecture(), 16_000).eval().requires_grad_(False)
    wav = torch.randn(max(BATCHES), SECONDS * 16_000) * 0.2
    with torch.inference_mode():
        quantizer = ResidualQuantizerTrainer(model.quantizer, 0.99, 0.0)
        quantizer.start(model.encoder(wav[:, None]), torch.Generator().manual_seed(0), iterations=2)
    return model, wav


def _encodec(model: Any) -> Callable[[Tensor], Tensor]:
    """`encodec`'s own modules with the weights of a transformers model (weight norm on)."""
    from encodec.modules import SEANetEncoder

    config = model.config
    encoder = SEANetEncoder(
        channels=1, dimension=config.hidden_size, n_filters=config.num_filters,
        ratios=list(config.upsampling_ratios), norm="weight_norm", causal=False,
        lstm=config.num_lstm_layers, pad_mode="reflect", true_skip=False,
    )  # fmt: skip
    # The same layers in the same order under other names.
    target, source = encoder.state_dict(), model.encoder.state_dict()
    names = zip(sorted(target, key=_position), sorted(source, key=_position), strict=True)
    encoder.load_state_dict({a: source[b].reshape(target[a].shape) for a, b in names})
    encoder.eval().requires_grad_(False)

    def encode(wav: Tensor) -> Tensor:
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


def bfloat16_share() -> dict[str, Any]:
    """Share of the shipped codec's codes that bfloat16 changes, on clips of the embedded corpus: in
    all, and by stream. `refused` if this processor's bfloat16 is wrong for the codec."""
    found = []
    try:
        codecs = [load_codec("builtin:sfx-small", precision=p) for p in ("float32", "bfloat16")]
    except AttuneError as error:
        return {"refused": str(error)}
    for i in range(64):
        rng = np.random.default_rng(i)
        wave = render([CLASSES[i % len(CLASSES)]], 4.0, [draw_params(rng)], rng)
        whole, half = (codec.encode_track(wave) for codec in codecs)
        found.append((whole != half).mean(axis=1))
    streams = np.mean(found, axis=0)
    return {
        "differ": round(float(streams.mean()), 4),
        "by_stream": [round(float(share), 4) for share in streams],
    }
