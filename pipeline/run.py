"""`pipeline run`: plan, embed, encode, finalize; each step resumes where it was left.

The driver holds no audio and no codes: it sends plan rows to codec actors and waits for their
results.  Only the plan decides which clip goes into which shard, so restarts, retries and the
number of workers change nothing in the result.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from common.config import Recipe, TextEncoderConfig
from common.errors import AttuneError
from common.shards import open_store_to_read
from common.storage import open_store
from common.uris import remote_uri
from pipeline.catalogs import CatalogEntry
from pipeline.config import Device, PipelineConfig
from pipeline.datadir.commit import committed_shards, poison_key
from pipeline.datadir.frozen_plan import (
    NO_TRAINING,
    FrozenPlan,
    plan_inputs,
    plan_to_read,
)
from pipeline.datadir.results import remove_results
from pipeline.encode.dispatch import Dispatch, Task
from pipeline.encode.embed import embed_chunks
from pipeline.encode.finalize import finalize
from pipeline.encode.resources import Resources, share_out
from pipeline.encode.worker import SHARDS_AT_ONCE, EncodeSettings, EncodeWorker
from pipeline.inspect.status import finished_summary
from pipeline.plan.decide import differing_inputs, hash_inputs
from pipeline.planning import make_plan, pipeline_session
from pipeline.progress import EncodeProgress, Progress
from pipeline.repair.retry import choose_shards, outcome, unmake_shards
from pipeline.text.tokens import token_lines

ATTEMPTS = 3
"""Number of failures after which a shard is marked as failed ("poison"), or embedding ends."""
_ONE_HEAP = {"MALLOC_ARENA_MAX": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
"""Environment of workers.  All threads share one heap, so a thread can reuse memory that another
thread freed.  Otherwise each thread would keep the most memory that it ever used."""


def run_pipeline(
    recipe: Recipe, config: PipelineConfig, say: Callable[[str], None] = print
) -> tuple[dict[str, Any], bool]:
    """Run all stages until `data_dir` is complete; resumes from whatever is already there.

    Args:
        say: called with one line of text per stage.

    Returns:
        The summary, and whether this call had to do any work.

    Raises:
        AttuneError: a user's mistake, a store that stays out of reach, or shards that failed on
            every attempt (all others are committed by then).
    """
    store = open_store(recipe.data_dir)
    say(f"recipe {recipe.name}: {len(config.catalogs)} catalogs -> {store.uri}")
    plan, is_new = make_plan(store, recipe, config)
    say(
        f"plan {plan.plan_hash[:12]} ({'new' if is_new else 'kept'}): {plan.n_planned} clips in "
        f"{plan.n_shards} shards, {plan.info['n_refused']} rows refused, "
        f"{plan.info['n_unique_prompts']} unique prompts"
    )
    for line in token_lines(plan.info.get("text_encoder")):
        say(line)
    if not plan.n_train:
        say(f"note: {NO_TRAINING}")
    summary = finished_summary(plan)
    if summary is not None:
        say("every shard is committed and the manifest is written: nothing to do")
        return summary, False
    committed = committed_shards(store) & set(range(plan.n_shards))
    if pending := plan.n_shards - len(committed):
        if store.exists("summary.json"):  # it is out of date: commits were deleted later
            remove_results(store)
        say(f"encoding {pending} shards ({len(committed)} are committed already)")
        with pipeline_session(store) as ray_name:
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
                f"{len(poison)} of {plan.n_shards} shards failed {ATTEMPTS} times: {named}; all "
                "others are committed, run the same command again to retry the failed ones"
            )
    summary = finalize(plan, recipe.name, recipe.codec.path)
    say(
        f"done: {summary['n_samples']} clips, {summary['hours']:.2f} h in {summary['n_shards']} "
        f"shards; {summary['n_rejected']} refused"
        + (" (python -m pipeline status --refused names them)" if summary["n_rejected"] else "")
    )
    return summary, True


def on_nodes(path: str) -> str:
    """A codec's or encoder's path that is valid for workers, which run in other folders.

    A local folder becomes an absolute path.  `builtin:...`, `package:...` and hub ids stay.
    """
    folder = Path(path).expanduser()
    return str(folder.absolute()) if folder.is_dir() else path


def embed(plan: FrozenPlan, encoder: TextEncoderConfig, resources: Resources) -> None:
    """Embed the prompts that are not in the text cache yet."""
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
    """Settings for the workers of a run."""
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
    """Encode every shard that has no commit yet.

    Returns:
        The shards that failed `ATTEMPTS` times, each with its last error.
    """
    import ray

    remote: Any = ray.remote  # Any: its type stub does not have max_concurrency
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
    """Local root folders of the catalogs' audio: absolute paths, as they are and normalized."""
    named = (getattr(catalog, name, None) for catalog in catalogs for name in ("audio", "root"))
    folders = [str(path.absolute()) for path in named if path and remote_uri(path) is None]
    return [*folders, *map(os.path.normpath, folders)]


def plan_resources(
    workers: int, cpus_per_worker: int, device: Device, say: Callable[[str], None]
) -> Resources:
    """Divide Ray's CPUs and GPUs among workers; reports if fewer workers fit than requested."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    resources = share_out(nodes, workers, cpus_per_worker, device)
    if workers > resources.workers:
        say(
            f"pipeline.workers is {workers}, but Ray has room for only {resources.workers} workers "
            f"with {resources.cpus} CPUs each: using {resources.workers}"
        )
    return resources


def retry_pipeline(
    recipe: Recipe,
    config: PipelineConfig,
    reasons: Collection[str] = (),
    dry_run: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Encode again what was refused or failed, until `data_dir` is complete.

    Args:
        reasons: reasons of the refusals to retry; none means every reason.
        say: called with one line of text per stage.

    Returns:
        The choice (`Retry.as_dict`); after a run also the result (`outcome`).

    Raises:
        AttuneError: `data_dir` holds no plan, or the plan of another recipe; or an error of
            `choose_shards` or `run_pipeline`.
    """
    store = open_store_to_read(recipe.data_dir)
    plan = plan_to_read(store)
    inputs = plan_inputs(recipe, config)
    if hash_inputs(inputs) != plan.plan_hash:
        differing = differing_inputs(plan.info["inputs"], inputs)
        raise AttuneError(
            f"{store.uri} holds plan {plan.plan_hash}, this recipe makes plan "
            f"{hash_inputs(inputs)}; inputs that differ (old -> new): {'; '.join(differing[:6])}. "
            "Restore the old inputs"
        )
    retry = choose_shards(plan, reasons)
    for line in retry.lines():
        say(line)
    if dry_run:
        return retry.as_dict()
    unmake_shards(plan, retry.shards)
    if finished_summary(plan) is None:
        run_pipeline(recipe, config, say)
    for shard in retry.poison:  # all are committed now, or the run would have failed
        store.delete(poison_key(shard))
    return retry.as_dict() | outcome(plan, retry)
