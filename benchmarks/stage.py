"""The pipeline around the codec: `python -m pipeline run` over real clips, against the codec only.

The codec has the paper's 16 kHz size and random weights. Three times are taken in one run, all with
the same weights, threads and clips, one clip at a time:

- the codec only, on clips that were decoded before;
- the encode stage: reading, decoding, resampling, checks, codec, tar, commit, in this process, with
  as many shards at once as a Ray worker has; it takes turns with the codec, two shards at a time;
- the whole command, from catalog to manifest, as a new process: imports, planning, Ray's start,
  text embedding, encoding, manifest.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.codec import paper_codec
from benchmarks.measure import Result, Row, seconds, write_recipe
from common.audio import AudioError, check_audio, read_audio, resample
from common.codec import load_codec
from common.config import load_recipe
from common.storage import open_store
from pipeline.config import PipelineConfig
from pipeline.corpus.layout import write_corpus
from pipeline.datadir.text_cache import TextCache
from pipeline.encode.worker import SHARDS_AT_ONCE, EncodeSettings, EncodeWorker
from pipeline.planning import make_plan

_SUFFIXES = {".wav", ".ogg", ".flac", ".mp3"}


def bench() -> Result:
    """The pipeline around the codec, on the embedded corpus and on ESC10_ROOT's clips if set."""
    found: dict[str, Any] = {}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        write_corpus(Path(scratch), 0, progress=lambda line: None)
        folders = {"embedded corpus": Path(scratch)}
        if root := os.environ.get("ESC10_ROOT"):
            folders["ESC-10"] = Path(root)
        for name, folder in folders.items():
            one = found[name] = run(folder.absolute())
            rows += [
                (f"encode stage / codec only, {name}", one["stage_ratio"], "at most 1.15"),
                ("  whole command / codec only", one["command_ratio"], "at most 1.15"),
            ]
    return found, rows


def run(audio: Path) -> dict[str, Any]:
    """Times over a folder of clips: clips, hours, and seconds of each part, with their ratios to
    the codec's own time."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        codec = str(folder / "codec")
        paper_codec()[0].save_pretrained(codec)
        clips = _decode(audio)
        recipe_file = _write_recipe(folder, audio, list(clips), codec)
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
                codec=codec,
                codec_id=plan.info["inputs"]["codec_id"],
                text_encoder_id=plan.info["inputs"]["text_encoder_id"],
                min_duration_s=config.min_duration_s,
                max_duration_s=config.max_duration_s,
                silence_dbfs=config.silence_dbfs,
                threads=torch.get_num_threads(),
                device="cpu",
            )
        )
        model = load_codec(codec)

        def codec_only(waves: list[NDArray[np.float32]]) -> None:
            for wave in waves:
                model.encode_track(wave)

        def whole_stage(shards: list[tuple[int, Any]]) -> None:
            with ThreadPoolExecutor(SHARDS_AT_ONCE) as pool:
                list(pool.map(lambda shard: worker.encode_shard(*shard), shards))

        tasks = list(plan.shards())
        codec_s = stage_s = 0.0
        for start in range(0, len(tasks), SHARDS_AT_ONCE):
            pair = tasks[start : start + SHARDS_AT_ONCE]
            uris = [row["audio_uri"] for _, table in pair for row in table.to_pylist()]
            waves = [wave for uri in uris if (wave := clips[Path(uri)]) is not None]
            if not start:  # the first pass through a codec is slower
                model.encode_track(waves[0])
                worker.codec_thread.submit(worker.codec.encode_track, waves[0]).result()
            if not start % (2 * SHARDS_AT_ONCE):  # every second time the stage comes first
                codec_s += seconds(partial(codec_only, waves))
            stage_s += seconds(partial(whole_stage, pair))
            if start % (2 * SHARDS_AT_ONCE):
                codec_s += seconds(partial(codec_only, waves))
        command_s = seconds(partial(_run_command, recipe_file, folder / "again"))
    heard = [wave for wave in clips.values() if wave is not None]
    return {
        "clips": len(heard),
        "hours": round(sum(map(len, heard)) / 16_000 / 3600, 3),
        "codec_s": round(codec_s, 2),
        "stage_s": round(stage_s, 2),
        "stage_ratio": round(stage_s / codec_s, 3),
        "command_s": round(command_s, 2),
        "command_ratio": round(command_s / codec_s, 3),
    }


def _decode(audio: Path) -> dict[Path, NDArray[np.float32] | None]:
    """The folder's files, each as a clip at 16 kHz; None where the pipeline refuses the file."""
    waves: dict[Path, NDArray[np.float32] | None] = {}
    for file in sorted(path for path in audio.rglob("*") if path.suffix in _SUFFIXES):
        waves[file] = None
        try:
            found = read_audio(file)
            check_audio(found.wav, found.sample_rate, 0.5, 7200.0)
        except AudioError:
            continue
        waves[file] = resample(found.wav, found.sample_rate, 16_000)
    return waves


def _write_recipe(folder: Path, audio: Path, files: list[Path], codec: str) -> Path:
    rows = (
        {"path": str(file.relative_to(audio)), "description": f"a sound of kind {i % 50}"}
        for i, file in enumerate(files)
    )
    catalog = folder / "catalog.jsonl"
    catalog.write_text("".join(json.dumps(row) + "\n" for row in rows))
    catalogs = [{"dataset": "music", "catalog": str(catalog), "audio": str(audio)}]
    threads = torch.get_num_threads()
    return write_recipe(
        folder, codec, task="music", clips_per_shard=64, cpus_per_worker=threads, catalogs=catalogs
    )


def _run_command(recipe: Path, data: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "run", "--config", str(recipe)]
    subprocess.run(
        [*command, f"data_dir={data}"], check=True, stdout=subprocess.DEVNULL,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
    )  # fmt: skip
