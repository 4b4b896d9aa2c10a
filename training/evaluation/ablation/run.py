"""All cells of a profile, several at a time, here or on a Ray cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from common.cluster import ray_session
from common.config import load_recipe
from common.errors import AttuneError
from training.config import LMConfig
from training.evaluation.ablation.cells import Cell, read_cell, run_cell
from training.evaluation.ablation.config import AblationConfig, Profile
from training.evaluation.clip_sets import read_shards

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
Outcome = dict[str, Any] | str
"""What a cell came to, or why it did not."""


def cells_of(
    config: AblationConfig,
    profile: Profile,
    recipe: str,
    weights: Path,
    device: str = "cpu",
    processes: int = 1,
) -> list[Cell]:
    """Every row with its seeds: first all rows with one seed, so that tables fill evenly.

    Raises:
        AttuneError: the recipe, its shards, their split or a row's settings are not usable.
    """
    cells = [
        (
            place,
            Cell(
                recipe, profile.overrides + row.overrides(), row.name, seed, profile.split,
                profile.datasets, profile.clips_per_prompt, str(weights), device, processes,
            ),
        )
        for row in config.rows_of(profile)
        for place, seed in enumerate(config.seeds_of(profile, row))
    ]  # fmt: skip
    for _, cell in cells:  # a mistake in the last row should not show after hours
        made = load_recipe(cell.recipe, cell.all_overrides)
        made.section("lm", LMConfig)
    read_shards(made.data_dir, profile.split, profile.datasets)
    return [cell for _, cell in sorted(cells, key=lambda one: one[0])]


def run_cells(
    cells: Sequence[Cell],
    jobs: int,
    ray_address: str | None,
    tell: Callable[[str], None],
) -> dict[str, Outcome]:
    """Make what is missing.  A cell that fails is told, and the others go on.

    Args:
        jobs: cells at a time on this machine.
        ray_address: of a cluster that makes them instead; every node has this project and the
            recipe's folders under the same paths.

    Returns:
        {cell: what it came to}.
    """
    done: dict[str, Outcome] = {}
    todo = []
    for cell in cells:
        found = read_cell(cell)
        if found is None:
            todo.append(cell)
        else:
            done[cell.name] = found
    if done:
        tell(f"{len(done)} of {len(cells)} cells are done")
    began = time.monotonic()
    made = _on_ray(todo, ray_address) if ray_address else _here(todo, jobs)
    for count, (cell, outcome) in enumerate(made, 1):
        done[cell.name] = outcome
        left = (time.monotonic() - began) / count * (len(todo) - count)
        told = outcome if isinstance(outcome, str) else _line(outcome)
        tell(f"{len(done)}/{len(cells)} {cell.name}: {told} ({left / 60:.0f} min left)")
    return done


def _line(outcome: dict[str, Any]) -> str:
    figures = ", ".join(f"{name} {value:.4g}" for name, value in outcome["metrics"].items())
    return f"{figures}; trained {outcome['train_s']:.0f} s, measured {outcome['measure_s']:.0f} s"


def _here(cells: Sequence[Cell], jobs: int) -> Iterator[tuple[Cell, Outcome]]:
    if not cells:
        return
    # Fresh interpreters: forked ones may not start threads of their own.
    with _threads(1 if jobs > 1 else None), ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        futures = {pool.submit(run_cell, cell): cell for cell in cells}
        try:
            for future in as_completed(futures):
                yield futures[future], _outcome(future.result)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Threads of every library in processes started meanwhile, and in theirs.

    Two pools of threads that wait for each other on the same cores are many times slower.  In the
    environment, because libraries look there while they are imported.
    """
    if number is None:
        yield
        return
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, str(number)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _on_ray(cells: Sequence[Cell], address: str) -> Iterator[tuple[Cell, Outcome]]:
    if not cells:
        return
    import ray

    with ray_session(address, "--ray "):
        gpus = cells[0].processes if cells[0].device != "cpu" else 0
        # Else a cell would have as many threads as the driver's container may use.
        one = {"env_vars": dict.fromkeys(_THREADS, "1")}
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=2, runtime_env=one)(run_cell)
        waiting = {remote.remote(cell): cell for cell in cells}
        while waiting:
            ready, _ = ray.wait(list(waiting))
            for reference in ready:
                cell = waiting.pop(reference)
                yield cell, _outcome(partial(_fetch, ray.get, reference))


def _fetch(get: Callable[[Any], Any], reference: Any) -> dict[str, Any]:
    found: dict[str, Any] = get(reference)
    return found


def _outcome(result: Callable[[], dict[str, Any]]) -> Outcome:
    try:
        return result()
    except Exception as error:  # of one cell: the others go on
        # Ray wraps what a task raised in an error of the same type, whose text is a traceback.
        cause = getattr(error, "cause", None) or error
        told = " ".join(str(cause).split())
        if isinstance(cause, AttuneError):
            return f"failed: {told}"
        return f"failed: {type(cause).__name__}: {told[-300:]}"
