"""`pipeline run`: plan, embed, encode, finalize; each step resumes where it was left.

The driver holds no audio and no codes: it hands plan rows to codec actors and waits for their
accounts.  Only the plan decides which clip goes into which shard, so restarts, retries and the
number of workers change nothing in the result.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from common.cluster import check_address
from common.config import Recipe, TextEncoderConfig
from common.errors import AttuneError
from common.shards import open_store_to_read
from common.storage import Store, open_store
from common.uris import remote_uri
from pipeline.catalogs import CatalogEntry
from pipeline.config import Device, PipelineConfig
from pipeline.datadir.commit import committed_shards
from pipeline.datadir.frozen_plan import FrozenPlan, ensure_plan, load_plan, plan_inputs
from pipeline.datadir.results import remove_results
from pipeline.encode.dispatch import Dispatch, Task
from pipeline.encode.embed import embed_chunks
from pipeline.encode.finalize import finalize
from pipeline.encode.resources import Resources, share_out
from pipeline.encode.worker import SHARDS_AT_ONCE, EncodeSettings, EncodeWorker
from pipeline.inspect.status import finished_summary
from pipeline.plan.decide import PlanTables, build_plan, differing_inputs, hash_inputs
from pipeline.plan.mapping import map_here, map_on_ray
from pipeline.progress import EncodeProgress, Progress
from pipeline.repair.retry import Retry, choose_shards, outcome, unmake_shards

ATTEMPTS = 3
"""Tries of one shard before it is parked as poison, and of embedding."""
_ONE_HEAP = {"MALLOC_ARENA_MAX": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
"""For workers: what one thread freed another may have; else each keeps what it ever needed."""
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
    summary = finished_summary(plan)
    if summary is not None:
        say("every shard is committed and the manifest is written: nothing to do")
        return summary, False
    committed = committed_shards(store) & set(range(plan.n_shards))
    if pending := plan.n_shards - len(committed):
        if store.exists("summary.json"):  # of commits that were deleted since
            remove_results(store)
        say(f"encoding {pending} shards ({len(committed)} are committed already)")
        with ray_session(store) as ray_name:
            resources = plan_resources(config.workers, config.cpus_per_worker, config.device, say)
            say(
                f"ray: {ray_name}; {resources.workers} workers of {resources.cpus} CPUs and "
                f"{resources.gpus:g} GPUs"
            )
            embed(plan, recipe.text_encoder, resources)
            settings = encode_settings(plan, recipe, config, resources)
            poison = encode(plan, settings, resources, committed)
        if poison:
            named = ", ".join(f"{shard:06d} ({error})" for shard, error in sorted(poison.items()))
            raise AttuneError(
                f"{len(poison)} of {plan.n_shards} shards failed {ATTEMPTS} times and are "
                f"parked: {named}; the others are committed, run again to retry these"
            )
    summary = finalize(plan, recipe.name, recipe.codec.path)
    say(
        f"done: {summary['n_samples']} clips, {summary['hours']:.2f} h in {summary['n_shards']} "
        f"shards; {summary['n_rejected']} refused"
        + (" (python -m pipeline status --refused names them)" if summary["n_rejected"] else "")
    )
    return summary, True


def make_plan(store: Store, recipe: Recipe, config: PipelineConfig) -> tuple[FrozenPlan, bool]:
    """The frozen plan of a recipe, as `ensure_plan`: worked out on the cluster at `RAY_ADDRESS`,
    else in this process."""

    def build() -> PlanTables:
        on_cluster = bool(os.environ.get("RAY_ADDRESS"))
        with ray_session(store) if on_cluster else nullcontext():
            return build_plan(
                config.catalogs,
                rules=config.text_rules(recipe.seed),
                clips_per_shard=config.clips_per_shard,
                seed=recipe.seed,
                overlap=config.overlap,
                mapper=map_on_ray if on_cluster else map_here,
            )

    return ensure_plan(
        store,
        plan_inputs(recipe, config),
        build,
        clips_per_shard=config.clips_per_shard,
        prompt_policy=config.prompt_policy,
    )


def on_nodes(path: str) -> str:
    """A codec's or encoder's path as workers find it, which run in folders of their own: absolute
    if it is a folder here; names of hubs and packages stay."""
    folder = Path(path).expanduser()
    return str(folder.absolute()) if folder.is_dir() else path


def embed(plan: FrozenPlan, encoder: TextEncoderConfig, resources: Resources) -> None:
    """Embed the prompts that the text cache lacks."""
    missing = sum(chunk.prompts for chunk in plan.missing_chunks())
    if not missing:
        return
    with Progress("embed", missing, "prompts") as progress:
        embed_chunks(
            plan,
            encoder.model_copy(update={"path": on_nodes(encoder.path)}),
            workers=resources.workers,
            cpus=resources.cpus,
            gpus=resources.gpus,
            attempts=ATTEMPTS,
            on_progress=progress.update,
        )


def encode_settings(
    plan: FrozenPlan, recipe: Recipe, config: PipelineConfig, resources: Resources
) -> EncodeSettings:
    """What the workers of a run need to know."""
    return EncodeSettings(
        data_dir=plan.store.uri,
        plan_hash=plan.plan_hash,
        codec=on_nodes(recipe.codec.path),
        codec_id=plan.info["inputs"]["codec_id"],
        text_encoder_id=plan.info["inputs"]["text_encoder_id"],
        min_duration_s=config.min_duration_s,
        max_duration_s=config.max_duration_s,
        silence_dbfs=config.silence_dbfs,
        batch_clips=config.batch_clips,
        threads=resources.cpus,
        device="cuda" if resources.gpus else "cpu",
        precision=config.precision,
        max_clipped_share=config.max_clipped_share,
        max_dc_offset=config.max_dc_offset,
        audio_folders=plan.audio_folders(audio_roots(config.catalogs)),
    )


def encode(
    plan: FrozenPlan, settings: EncodeSettings, resources: Resources, committed: set[int]
) -> dict[int, str]:
    """Encode every shard without a commit.

    Returns:
        The poison shards: those that failed `ATTEMPTS` times, with their last error.
    """
    import ray

    remote: Any = ray.remote  # typed without max_concurrency
    actor_class = remote(
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
        max_concurrency=SHARDS_AT_ONCE,
        runtime_env={"env_vars": _ONE_HEAP},
    )(EncodeWorker)
    tasks = (Task(shard, rows) for shard, rows in plan.shards(skip=committed))
    clips_done = sum(map(plan.clips_in, committed))
    with EncodeProgress(plan.n_planned, plan.n_shards, clips_done, len(committed)) as progress:
        dispatch = Dispatch(
            lambda: actor_class.remote(settings),
            plan.store,
            ATTEMPTS,
            on_done=lambda done: progress.add(done["clips"], done["refused"], done["seconds"]),
            on_tick=progress.show,
        )
        return dispatch.run(tasks, min(resources.workers, plan.n_shards - len(committed)))


def audio_roots(catalogs: Sequence[CatalogEntry]) -> list[str]:
    """The folders on a disk that the catalogs have their audio below, as the plan writes them."""
    named = (getattr(catalog, name, None) for catalog in catalogs for name in ("audio", "root"))
    folders = [str(path.absolute()) for path in named if path and remote_uri(path) is None]
    return [*folders, *map(os.path.normpath, folders)]


def plan_resources(
    workers: int, cpus_per_worker: int, device: Device, say: Callable[[str], None]
) -> Resources:
    """Share out what the running Ray has; says so when it is less than was asked for."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    resources = share_out(nodes, workers, cpus_per_worker, device)
    if workers > resources.workers:
        say(
            f"pipeline.workers is {workers}, Ray has room for {resources.workers} of "
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
    if address:
        check_address(address, "RAY_ADDRESS=")
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
    except Exception as error:  # a node that is slow to start is no other kind to Ray
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


def retry_pipeline(
    recipe: Recipe,
    config: PipelineConfig,
    reasons: Collection[str] = (),
    dry_run: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Encode again what was refused or failed, and bring `data_dir` back to its finished state.

    Args:
        reasons: of the refusals to try again; none means every reason.
        say: hears one line per step.

    Returns:
        What was chosen (`Retry.as_dict`); after a run also what came of it (`outcome`).

    Raises:
        AttuneError: `data_dir` holds no plan or another recipe's; and as `choose_shards` and
            `run_pipeline`.
    """
    store = open_store_to_read(recipe.data_dir)
    plan = load_plan(store)
    if plan is None:
        raise AttuneError(f"{store.uri}: no plan there; run `python -m pipeline run` first")
    inputs = plan_inputs(recipe, config)
    if hash_inputs(inputs) != plan.plan_hash:
        differing = differing_inputs(plan.info["inputs"], inputs)
        raise AttuneError(
            f"{store.uri} holds plan {plan.plan_hash}, this recipe makes plan "
            f"{hash_inputs(inputs)}; differs: {'; '.join(differing[:6])}. Restore what differs"
        )
    retry = choose_shards(plan, reasons)
    _tell(retry, say)
    if dry_run:
        return retry.as_dict()
    unmake_shards(plan, retry.shards)
    if finished_summary(plan) is None:
        run_pipeline(recipe, config, say)
    for shard in retry.poison:  # committed by now, or the run would have ended with an error
        store.delete(f"poison/{shard:06d}.json")
    return retry.as_dict() | outcome(plan, retry)


def _tell(retry: Retry, say: Callable[[str], None]) -> None:
    counts = ", ".join(f"{reason} {number}" for reason, number in sorted(retry.clips.items()))
    say(f"to retry: {len(retry.shards)} shards" + (f" with {counts}" if counts else ""))
    if retry.poison:
        say(f"to retry: {len(retry.poison)} shards that failed on every attempt")
    if retry.waiting:
        counts = ", ".join(f"{reason} {number}" for reason, number in sorted(retry.waiting.items()))
        say(f"their files are as they were: {counts}")
    for shard, why in sorted(retry.held.items()):
        say(f"shard {shard:06d} is left as it is: {why}")
