"""Memory of driver and worker from 1,000 to 100,000 clips, and prompts that are embedded only once.

Half-second clips with two captions each, a fifth as many different captions as clips: 100,000 clips
have 200,000 prompts, 20,000 of them different. The text encoder is real. The codec is a stand-in
that returns zeros (the real codec would take days here), so this says nothing about speed.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from benchmarks.measure import Result, in_child, process_tree, write_recipe
from common.config import load_recipe

SIZES = (1_000, 10_000, 100_000)
_NAMES = 1000
"""Files that share one inode (file systems limit their number)."""


class StandInCodec:
    """Returns zeros with the real codec's shapes: 16 kHz, 50 Hz frames, 4 streams."""

    sample_rate = 16_000

    def is_short(self, wav: NDArray[np.float32]) -> bool:
        return True

    def encode_track(self, wav: NDArray[np.float32]) -> NDArray[np.int16]:
        return np.zeros((4, -(-len(wav) // 320)), np.int16)

    def encode_clips(self, wavs: list[NDArray[np.float32]]) -> list[NDArray[np.int16]]:
        return [self.encode_track(wav) for wav in wavs]


def write_clips(folder: Path, clips: int) -> None:
    """`clips` files and their `metadata.csv`; most files are hard links to a few others."""
    rng = np.random.default_rng(0)
    words = ["dog", "bark", "rain", "wind", "engine", "bird", "door", "water", "crowd", "bell"]
    unique = clips // 5
    captions = [
        f"{' and '.join(rng.choice(words, 6))} in scene number {i} of a long afternoon"
        for i in range(unique)
    ]
    source = folder
    with (folder / "metadata.csv").open("w") as file:
        file.write("file_name,caption_1,caption_2\n")
        for i in range(clips):
            path = folder / f"{i:06d}.wav"
            if i % _NAMES == 0:
                source = path
                soundfile.write(path, 0.3 * rng.standard_normal(8_000), 16_000)
            else:
                os.link(source, path)
            file.write(f"{path.name},{captions[2 * i % unique]},{captions[(2 * i + 1) % unique]}\n")


def bench() -> Result:
    """Memory and the text cache, from 1,000 to 100,000 clips, with a stand-in for the codec."""
    found = [run(clips) for clips in SIZES]
    first, last = found[0], found[-1]
    sizes = f"{first['clips']:,} -> {last['clips']:,} clips, stand-in codec"
    prompts = f"{last['prompts']:,} prompts, {last['unique_prompts']:,} different"
    return {"sizes": found}, [
        (f"driver peak MB, {sizes}", f"{first['driver_mb']} -> {last['driver_mb']}", "constant"),
        ("  worker peak MB", f"{first['worker_mb']} -> {last['worker_mb']}", "constant"),
        ("  planning process peak MB", f"{first['plan_mb']} -> {last['plan_mb']}", "no bound"),
        (f"  embedded, of {prompts}", last["embedded"], "once each"),
    ]


def run(clips: int) -> dict[str, Any]:
    """One size: plan in one process, run in another.

    Returns:
        clips, prompts, unique and embedded prompts, seconds, and peak MB of the planning process,
        the driver and its largest worker.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "audio").mkdir()
        write_clips(folder / "audio", clips)
        catalogs = [{"dataset": "audiofolder", "root": f"{scratch}/audio"}]
        plain = {"policy": "plain"}
        recipe = write_recipe(
            folder, "builtin:sfx-small", text=plain, cpus_per_worker=1, catalogs=catalogs
        )
        planned, _ = in_child(plan_recipe, recipe, _worker_peak_kb)
        ran, worker_kb = in_child(run_recipe, recipe, _worker_peak_kb)
        return {"clips": clips, **planned, **ran, "worker_mb": worker_kb // 1024}


def _worker_peak_kb(pid: int) -> int:
    """The largest peak of the `EncodeWorker` processes below a process."""
    peak = 0
    for one in process_tree(pid):
        with suppress(OSError):  # the process has ended
            if b"ray::EncodeWorker" in Path(f"/proc/{one}/cmdline").read_bytes():
                peak = max(peak, _peak_kb(one))
    return peak


def _peak_kb(pid: int) -> int:
    """Not `ru_maxrss`, which begins with the peak of the process that started this one."""
    peak = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(peak[1]) if peak else 0


def plan_recipe(recipe_file: str) -> dict[str, Any]:
    """Plan; report the numbers of prompts and this process's peak memory."""
    # Imported here and below in the measured child process, so that its memory is its own.
    from common.storage import open_store
    from pipeline.config import PipelineConfig
    from pipeline.planning import make_plan

    recipe = load_recipe(recipe_file)
    config = recipe.section("pipeline", PipelineConfig)
    plan, _ = make_plan(open_store(recipe.data_dir), recipe, config)
    prompts = sum(
        len(row) for batch in plan.batches("plan", ["prompts"]) for row in batch["prompts"]
    )
    unique = plan.info["n_unique_prompts"]
    return {"prompts": prompts, "unique_prompts": unique, "plan_mb": _peak_kb(os.getpid()) // 1024}


def run_recipe(recipe_file: str) -> dict[str, Any]:
    """Run the pipeline with the stand-in codec; report embedded prompts, seconds, peak memory."""
    import ray

    import pipeline.run as module
    from pipeline.config import PipelineConfig
    from pipeline.encode.worker import EncodeWorker

    class StandInWorker(EncodeWorker):
        def _load_codec(self) -> Any:
            return StandInCodec()

    StandInWorker.__name__ = "EncodeWorker"  # Ray names the process after the class
    embedded = 0
    embed_chunks = module.embed_chunks

    def count(*args: Any, on_progress: Callable[[int], None], **settings: Any) -> None:
        def note(done: int) -> None:
            nonlocal embedded
            embedded = done
            on_progress(done)

        embed_chunks(*args, on_progress=note, **settings)

    module.embed_chunks = count
    module.EncodeWorker = StandInWorker  # type: ignore[misc]
    # Ray ships `common` and `pipeline` to its workers, but not this module.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    recipe = load_recipe(recipe_file)
    began = time.perf_counter()
    module.run_pipeline(recipe, recipe.section("pipeline", PipelineConfig), say=lambda line: None)
    taken = round(time.perf_counter() - began, 1)
    return {"embedded": embedded, "run_s": taken, "driver_mb": _peak_kb(os.getpid()) // 1024}
