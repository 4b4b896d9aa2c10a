"""Where a run stands, from its files alone: works while it runs, after a kill, and at the end."""

from __future__ import annotations

import json
from typing import Any

from common.errors import AttuneError
from common.storage import Store
from pipeline.commit import committed_shards, read_commit
from pipeline.planfile import FrozenPlan, load_plan
from pipeline.textcache import TextCache


def finished_summary(plan: FrozenPlan) -> dict[str, Any] | None:
    """`summary.json`, if it is there, whole, and made from this plan."""
    try:
        summary = json.loads(plan.store.read("summary.json"))
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(summary, dict) or summary.get("plan_hash") != plan.plan_hash:
        return None
    return summary


def read_status(store: Store) -> dict[str, Any]:
    """Counts per stage.

    Raises:
        AttuneError: there is no plan yet.
    """
    plan = load_plan(store)
    if plan is None:
        raise AttuneError(f"{store.uri}: no plan there; run `python -m pipeline run` first")
    committed = sorted(committed_shards(store) & set(range(plan.n_shards)))
    clips = refused = 0
    seconds = 0.0
    for shard in committed:
        commit = read_commit(store, shard)
        if commit is not None:
            clips += len(commit["samples"])
            refused += len(commit["refused"])
            seconds += sum(sample["duration_s"] for sample in commit["samples"])
    prompts = plan.table("prompts")
    cached = TextCache(store, plan.info["inputs"]["text_encoder_id"]).chunks()
    embedded = sum(chunk in cached for chunk in prompts["chunk"].to_pylist())
    poison = _read_poison(store)
    if finished_summary(plan) is not None:
        state = "finished"
    elif len(committed) == plan.n_shards:
        state = "committed"
    else:
        state = "encoding" if committed else "planned"
    return {
        "data_dir": store.uri,
        "plan_hash": plan.plan_hash,
        "state": state,
        "catalogs": plan.info["catalogs"],
        "planned": plan.n_planned,
        "prompts": {"unique": len(prompts), "embedded": embedded},
        "shards": {"planned": plan.n_shards, "committed": len(committed)},
        "clips": clips,
        "hours": round(seconds / 3600, 6),
        "refused_while_encoding": refused,
        "poison": [entry for entry in poison if entry["shard"] not in set(committed)],
    }


def _read_poison(store: Store) -> list[dict[str, Any]]:
    entries = []
    for key, _ in store.list("poison"):
        try:
            entry = json.loads(store.read(key))
            entries.append({"shard": int(entry["shard"]), "errors": list(entry["errors"])})
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            continue  # gone meanwhile, or not ours
    return entries
