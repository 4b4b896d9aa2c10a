"""Run all cells of a profile, several at a time, on this machine or on a Ray cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from common.cluster import ray_session
from common.config import load_recipe
from common.errors import AttuneError, one_line
from training.config import LMConfig
from training.evaluation.ablation.cells import Cell, read_cell, run_cell
from training.evaluation.ablation.config import AblationConfig, Profile
from training.evaluation.clip_sets import read_shards

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
Outcome = dict[str, Any] | str
"""The document of `run_cell`, or why the cell failed."""


def cells_of(
    config: AblationConfig,
    profile: Profile,
    recipe: str,
    weights: Path,
    device: str = "cpu",
    processes: int = 1,
) -> list[Cell]:
    """The cells of all rows and seeds, in the order of seeds, so that tables fill evenly.

    Raises:
        AttuneError: the recipe, its shards, their split or the settings of a row are wrong.
    """
    places = [
        (place, row, seed)
        for row in config.rows_of(profile)
        for place, seed in enumerate(config.seeds_of(profile, row))
    ]
    cells = [
        Cell(
            recipe, profile.overrides + row.overrides(), row.name, seed, profile.split,
            profile.datasets, profile.clips_per_prompt, str(weights), device, processes,
        )
        for _, row, seed in sorted(places, key=lambda one: one[0])
    ]  # fmt: skip
    for cell in cells:  # all rows are checked now: a mistake in the last row should not show later
        made = load_recipe(cell.recipe, cell.all_overrides)
        made.section("lm", LMConfig)
    read_shards(made.data_dir, profile.split, profile.datasets)
    return cells


def run_cells(
    cells: Sequence[Cell],
    jobs: int,
    ray_address: str | None,
    report: Callable[[str], None],
) -> dict[str, Outcome]:
    """Run the cells that are not done.  If a cell fails, the other cells still run.

    Args:
        jobs: number of cells at a time on this machine.
        ray_address: address of a Ray cluster that runs the cells instead.  Every node needs this
            project and the folders of the recipe under the same paths.
        report: called with one line per cell.

    Returns:
        {cell: outcome}.
    """
    found = {cell.name: read_cell(cell) for cell in cells}
    done: dict[str, Outcome] = {name: made for name, made in found.items() if made is not None}
    todo = [cell for cell in cells if cell.name not in done]
    if done:
        report(f"{len(done)} of {len(cells)} cells are done")
    began = time.monotonic()
    made = _on_ray(todo, ray_address) if ray_address else _here(todo, jobs)
    for count, (cell, outcome) in enumerate(made, 1):
        done[cell.name] = outcome
        left = (time.monotonic() - began) / count * (len(todo) - count)
        line = outcome if isinstance(outcome, str) else _line(outcome)
        report(f"{len(done)}/{len(cells)} {cell.name}: {line} ({left / 60:.0f} min left)")
    return done


def _line(outcome: dict[str, Any]) -> str:
    figures = ", ".join(f"{name} {value:.4g}" for name, value in outcome["metrics"].items())
    return f"{figures}; trained {outcome['train_s']:.0f} s, measured {outcome['measure_s']:.0f} s"


def _here(cells: Sequence[Cell], jobs: int) -> Iterator[tuple[Cell, Outcome]]:
    if not cells:
        return
    if jobs > 1:
        # One thread for each process and for the training that it starts: two pools of threads on
        # the same cores are many times slower.  Libraries read these variables at import.
        os.environ.update(dict.fromkeys(_THREADS, "1"))
    # Spawned processes, because forked processes cannot start threads.
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        futures = {pool.submit(run_cell, cell): cell for cell in cells}
        try:
            for future in as_completed(futures):
                yield futures[future], _outcome(future.result)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _on_ray(cells: Sequence[Cell], address: str) -> Iterator[tuple[Cell, Outcome]]:
    if not cells:
        return
    import ray

    get: Callable[[Any], Any] = ray.get
    with ray_session(address, "--ray "):
        gpus = cells[0].processes if cells[0].device != "cpu" else 0
        # Without this, Ray gives every cell as many threads as this machine has.
        one = {"env_vars": dict.fromkeys(_THREADS, "1")}
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=2, runtime_env=one)(run_cell)
        waiting = {remote.remote(cell): cell for cell in cells}
        while waiting:
            ready, _ = ray.wait(list(waiting))
            for reference in ready:
                cell = waiting.pop(reference)
                yield cell, _outcome(partial(get, reference))


def _outcome(result: Callable[[], dict[str, Any]]) -> Outcome:
    try:
        return result()
    except Exception as error:  # the other cells still run
        # Ray wraps an error in an error of the same type whose text is a traceback.
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, AttuneError):
            return f"failed: {one_line(cause, 10_000)}"
        return f"failed: {type(cause).__name__}: {one_line(cause, 10_000)[-300:]}"
