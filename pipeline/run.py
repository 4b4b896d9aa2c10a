"""`pipeline run`: plan, embed, encode, finalize; each step goes on where it was left.

The driver holds no audio and no codes: it hands plan rows to codec actors and waits for their
accounts.  Which clip goes into which shard is the plan's business alone, so restarts, retries and
the number of workers change nothing in the result.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from common.config import Recipe
from common.errors import AttuneError
from common.storage import StorageError, Store, open_store
from pipeline.commit import canonical_json, committed_shards
from pipeline.config import PipelineConfig
from pipeline.embed import embed_chunks, find_mistake
from pipeline.encode import EncodeSettings, EncodeWorker
from pipeline.finalize import finalize
from pipeline.mapping import map_on_ray
from pipeline.planfile import FrozenPlan, ensure_plan
from pipeline.progress import EncodeProgress
from pipeline.resources import Resources, share_out
from pipeline.retry import resume_retry
from pipeline.status import finished_summary
from pipeline.textcache import TextCache

_START_DEATHS = 20
"""Workers in a row that may die before they answer."""
_OBJECT_STORE_BYTES = 200 * 2**20
"""Only plan rows pass through Ray's object store."""


def run_pipeline(
    recipe: Recipe, config: PipelineConfig, say: Callable[[str], None] = print
) -> tuple[dict[str, Any], bool]:
    """Bring `data_dir` to its finished state.

    Args:
        say: hears one line per step.

    Returns:
        The summary, and whether anything was left to do.

    Raises:
        AttuneError: a user's mistake, a store that stays out of reach, or shards that failed on
            every attempt (the others are committed by then).
    """
    store = open_store(recipe.data_dir)
    say(f"recipe {recipe.name}: {len(config.catalogs)} catalogs -> {store.uri}")
    plan, is_new = make_plan(store, recipe, config)
    say(
        f"plan {plan.plan_hash[:12]} ({'new' if is_new else 'kept'}): {plan.n_planned} clips in "
        f"{plan.n_shards} shards, {plan.info['n_refused']} rows refused, "
        f"{plan.info['n_unique_prompts']} unique prompts"
    )
    resume_retry(plan, say)
    summary = finished_summary(plan)
    if summary is not None:
        say("every shard is committed and the manifest is written: nothing to do")
        return summary, False
    committed = committed_shards(store) & set(range(plan.n_shards))
    if pending := plan.n_shards - len(committed):
        say(f"encoding {pending} shards ({len(committed)} are committed already)")
        with ray_session(store) as ray_name:
            resources = plan_resources(config, say)
            say(
                f"ray: {ray_name}; {resources.workers} workers of {resources.cpus} CPUs and "
                f"{resources.gpus:g} GPUs"
            )
            embed(plan, recipe, resources, config.attempts, say)
            poison = encode(plan, recipe, config, resources, committed)
        if poison:
            named = ", ".join(f"{shard:06d} ({error})" for shard, error in sorted(poison.items()))
            raise AttuneError(
                f"{len(poison)} of {plan.n_shards} shards failed {config.attempts} times and are "
                f"parked: {named}; the others are committed, run again to retry these"
            )
    summary = finalize(plan, recipe)
    say(
        f"done: {summary['n_samples']} clips, {summary['hours']:.2f} h in {summary['n_shards']} "
        f"shards; {summary['n_rejected']} refused"
    )
    return summary, True


def make_plan(store: Store, recipe: Recipe, config: PipelineConfig) -> tuple[FrozenPlan, bool]:
    """The frozen plan of a recipe, as `ensure_plan`: worked out on the cluster at `RAY_ADDRESS`,
    else in this process."""
    if os.environ.get("RAY_ADDRESS"):
        with ray_session(store):
            return ensure_plan(store, recipe, config, map_on_ray)
    return ensure_plan(store, recipe, config)


def embed(
    plan: FrozenPlan,
    recipe: Recipe,
    resources: Resources,
    attempts: int,
    say: Callable[[str], None],
) -> None:
    """Embed the prompts that the text cache lacks."""
    cache = TextCache(plan.store, plan.info["inputs"]["text_encoder_id"])
    embed_chunks(
        plan.table("prompts"),
        cache,
        recipe.text_encoder,
        plan.info["inputs"]["text_encoder_id"],
        workers=resources.workers,
        cpus=resources.cpus,
        gpus=resources.gpus,
        attempts=attempts,
        on_progress=lambda done, total: say(f"embed  {done}/{total} prompts"),
    )


def encode(
    plan: FrozenPlan,
    recipe: Recipe,
    config: PipelineConfig,
    resources: Resources,
    committed: set[int],
) -> dict[int, str]:
    """Encode every shard without a commit.

    Returns:
        The poison shards: those that failed `config.attempts` times, with their last error.
    """
    import ray

    inputs = plan.info["inputs"]
    settings = EncodeSettings(
        data_dir=plan.store.uri,
        plan_hash=plan.plan_hash,
        codec=recipe.codec.path,
        codec_id=inputs["codec_id"],
        text_encoder_id=inputs["text_encoder_id"],
        min_duration_s=config.min_duration_s,
        max_duration_s=config.max_duration_s,
        silence_dbfs=config.silence_dbfs,
        decode_threads=config.decode_threads,
        batch_clips=config.batch_clips,
        threads=resources.cpus,
        device="cuda" if resources.gpus else "cpu",
    )
    actor_class: Any = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus)(EncodeWorker)
    cache = TextCache(plan.store, inputs["text_encoder_id"])
    spans = cache.spans(set(plan.table("prompts")["chunk"].to_pylist()))
    progress = EncodeProgress(
        plan.n_planned, plan.n_shards, sum(map(plan.clips_in, committed)), len(committed)
    )
    fresh = plan.shards(skip=committed)
    retries: deque[tuple[int, pa.Table]] = deque()
    failures: dict[int, list[str]] = {}
    poison: dict[int, str] = {}
    deaths = 0
    # An actor gets work once it answers: one that waits for a node which never comes back (its own
    # died, say) holds up nobody else's shards.
    starting: dict[Any, Any] = {}
    idle: list[Any] = []
    running: dict[Any, tuple[Any, int, pa.Table]] = {}

    def start() -> None:
        actor = actor_class.remote(settings)
        starting[actor.is_ready.remote()] = actor

    for _ in range(min(resources.workers, plan.n_shards - len(committed))):
        start()
    task = next(fresh, None)
    while task is not None or running:
        while idle and task is not None:
            shard, rows = task
            prompts = {prompt for row in rows["prompts"].to_pylist() for prompt in row}
            actor = idle.pop()
            reference = actor.encode_shard.remote(shard, rows, {p: spans[p] for p in prompts})
            running[reference] = (actor, shard, rows)
            task = retries.popleft() if retries else next(fresh, None)
        done, _ = ray.wait([*running, *starting], num_returns=1, timeout=1.0)
        progress.show()
        for reference in done:
            if reference in starting:
                actor = starting.pop(reference)
                try:
                    ray.get(reference)
                except ray.exceptions.RayError as error:
                    deaths += 1
                    if deaths > _START_DEATHS:
                        raise AttuneError(
                            f"workers die before they have begun: {_describe(error)}; run again"
                        ) from error
                    start()
                else:
                    deaths = 0
                    idle.append(actor)
                continue
            actor, shard, rows = running.pop(reference)
            try:
                account = ray.get(reference)
            except ray.exceptions.RayError as error:
                cause = find_mistake(error)
                if cause is not None and not isinstance(cause, StorageError):
                    raise cause from None  # the same on every attempt
                errors = failures.setdefault(shard, [])
                errors.append(_describe(error))
                if isinstance(error, ray.exceptions.RayActorError):
                    start()  # its process is gone
                else:
                    idle.append(actor)
                if len(errors) < config.attempts:
                    retries.append((shard, rows))
                elif cause is not None:
                    raise cause from None
                else:
                    poison[shard] = errors[-1]
                    _park(plan.store, shard, errors)
            else:
                progress.add(account["clips"], account["refused"], account["seconds"])
                if shard in failures:
                    plan.store.delete(_poison_key(shard))
                idle.append(actor)
        if task is None:
            task = retries.popleft() if retries else next(fresh, None)
    return poison


def plan_resources(config: PipelineConfig, say: Callable[[str], None]) -> Resources:
    """Share out what the running Ray has; says so when it is less than was asked for."""
    import ray

    resources = share_out([node["Resources"] for node in ray.nodes() if node["Alive"]], config)
    if config.workers > resources.workers:
        say(
            f"pipeline.workers is {config.workers}, Ray has room for {resources.workers} of "
            f"{resources.cpus} CPUs: taking {resources.workers}"
        )
    return resources


@contextmanager
def ray_session(store: Store) -> Iterator[str]:
    """The cluster at `RAY_ADDRESS`, or a Ray of our own that ends with this process.

    Raises:
        AttuneError: there is no cluster at that address, or it could not reach a local `data_dir`.
    """
    import ray
    from ray.data import DataContext

    address = os.environ.get("RAY_ADDRESS")
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address:
            root = Path(__file__).resolve().parent.parent
            # The cluster's nodes need our code; everything else they have installed.
            modules = [str(root / "common"), str(root / "pipeline")]
            ray.init(address, runtime_env={"py_modules": modules}, **common)
        else:
            # "local": without it Ray would join any cluster that it finds on this machine.
            ray.init(
                "local",
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                **common,
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"at RAY_ADDRESS={address}" if address else "on this machine"
        reason = " ".join(str(error).split())[:200]
        raise AttuneError(f"cannot start Ray {where}: {reason}") from error
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    DataContext.get_current().enable_progress_bars = False
    try:
        nodes = sum(node["Alive"] for node in ray.nodes())
        if address and nodes > 1 and "://" not in store.uri:
            print(
                f"note: {nodes} nodes write to {store.uri}: it must be a shared folder",
                file=sys.stderr,
            )
        yield f"cluster at {address}, {nodes} nodes" if address else "embedded"
    finally:
        ray.shutdown()


def _poison_key(shard: int) -> str:
    return f"poison/{shard:06d}.json"


def _park(store: Store, shard: int, errors: list[str]) -> None:
    """Name a shard that failed on every attempt, for `status` and whoever looks into it."""
    store.write(_poison_key(shard), canonical_json({"shard": shard, "errors": errors}))


def _describe(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0][:200] if lines else ''}"
