"""The plan: which clips are encoded, with which prompts, into which shard; and what is refused.

Pure: catalogs and settings in, Arrow tables out.  Shard and position come from a seeded hash of the
sample id, so they depend on the set of accepted clips and on nothing else: not on the order of the
catalogs, of their rows or of any worker.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa

from common.errors import AttuneError
from common.prompts import PromptPolicy
from common.schema import PLAN, REJECTS, SPLITS, Record
from pipeline.catalogs import Catalog
from pipeline.catalogs.base import Merged, Outcome, Refusal, refuse
from pipeline.text.captions import TextRules, write_prompts

_TEXT_BATCH = 8192


@dataclass
class CatalogCount:
    """The account of one catalog: read = accepted + merged + all refused."""

    read: int = 0
    merged: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        return {
            "read": self.read,
            "accepted": self.accepted,
            "merged": self.merged,
            "refused": dict(sorted(self.refused.items())),
        }


@dataclass
class PlanTables:
    """plan: `PLAN`, by shard and position. rejects: `REJECTS`, in reading order."""

    plan: pa.Table
    rejects: pa.Table
    counts: dict[str, CatalogCount]

    @property
    def n_shards(self) -> int:
        return int(self.plan["shard"][-1].as_py()) + 1 if len(self.plan) else 0


def build_plan(
    catalogs: Sequence[Catalog],
    *,
    policy: PromptPolicy,
    drop_speech: bool,
    music_variants: int,
    clips_per_shard: int,
    seed: int,
) -> PlanTables:
    """Read every catalog and decide on every row.

    Raises:
        AttuneError: a catalog cannot be read, or not a single clip is accepted.
    """
    labels = [catalog.label for catalog in catalogs]
    counts = {label: CatalogCount() for label in labels}
    accepted: dict[str, tuple[Record, list[str]]] = {}
    refusals: list[Refusal] = []
    held_out: dict[str, str] = {}
    for catalog in catalogs:
        outcomes = _count(catalog.read(), counts[catalog.label])
        for batch in _batches(outcomes, _TEXT_BATCH):
            for outcome in batch:
                if outcome.split in ("valid", "test") and outcome.group_id:
                    held_out.setdefault(outcome.group_id, f"{outcome.dataset} {outcome.split}")
            refusals += [outcome for outcome in batch if isinstance(outcome, Refusal)]
            records = [outcome for outcome in batch if isinstance(outcome, Record)]
            for result in write_prompts(
                records,
                catalog.text_kind,
                TextRules(
                    policy,
                    speech="term" if drop_speech else "keep",
                    music_variants=music_variants,
                    seed=seed,
                ),
            ):
                if isinstance(result, Refusal):
                    refusals.append(result)
                    continue
                key = result[0].sample_id
                kept, double = result, accepted.get(key)
                if double and SPLITS.index(double[0].split) >= SPLITS.index(kept[0].split):
                    kept, double = double, kept
                accepted[key] = kept
                if double:  # of train, valid and test, the one held out most strictly stays
                    detail = f"the same clip as {kept[0].source}"
                    refusals.append(refuse(double[0], "catalog", "duplicate", detail))
    for key in [k for k, (record, _) in accepted.items() if _leaks(record, held_out)]:
        record, _ = accepted.pop(key)
        detail = f"{record.group_id} is held out by {held_out[record.group_id]}"
        refusals.append(refuse(record, "split", "leakage", detail))
    for refusal in refusals:
        counts[refusal.dataset].refused[refusal.reason] += 1
    for record, _ in accepted.values():
        counts[record.dataset].accepted += 1
    for label, count in counts.items():
        done = count.accepted + count.merged + count.refused.total()
        assert count.read == done, f"{label}: {count.read} rows read, {done} accounted for"
    if not accepted:
        reasons = Counter(refusal.reason for refusal in refusals).most_common(3)
        told = ", ".join(f"{reason} {number}" for reason, number in reasons) or "no rows"
        first = f"; first: {refusals[0].source}: {refusals[0].detail}" if refusals else ""
        raise AttuneError(f"not one of {len(refusals)} catalog rows is usable: {told}{first}")
    plan = _plan_table(accepted, clips_per_shard, seed)
    return PlanTables(plan, rejects_table(refusals), counts)


def rejects_table(refusals: Iterable[Refusal]) -> pa.Table:
    """Refusals as a `REJECTS` table, in their order."""
    rows = [{name: getattr(refusal, name) for name in REJECTS.names} for refusal in refusals]
    return pa.Table.from_pylist(rows, schema=REJECTS)


def hash_inputs(inputs: Mapping[str, Any]) -> str:
    """The plan's hash: 32 hex digits over everything that decides what the shards hold."""
    canonical = json.dumps(inputs, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def differing_inputs(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two plans' inputs, as `key: old -> new`."""
    lines = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differing_inputs(a, b, f"{prefix}{key}.")
        elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
            for i, (x, y) in enumerate(zip(a, b, strict=True)):
                lines += differing_inputs({str(i): x}, {str(i): y}, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {_short(a)} -> {_short(b)}")
    return lines


def _leaks(record: Record, held_out: Mapping[str, str]) -> bool:
    return record.split == "train" and record.group_id in held_out


def _count(outcomes: Iterator[Outcome], count: CatalogCount) -> Iterator[Record | Refusal]:
    for outcome in outcomes:
        count.read += 1
        if isinstance(outcome, Merged):
            count.merged += 1
        else:
            yield outcome


def _plan_table(
    accepted: Mapping[str, tuple[Record, list[str]]], clips_per_shard: int, seed: int
) -> pa.Table:
    key = str(seed).encode()
    order = sorted(
        accepted, key=lambda i: hashlib.blake2b(i.encode(), digest_size=16, key=key).digest()
    )
    rows: list[dict[str, Any]] = []
    for shard, members in enumerate(_batches(order, clips_per_shard)):
        # Inside a shard by sample id: the order of the members in the tar.
        for position, member in enumerate(sorted(members)):
            record, prompts = accepted[member]
            place = {"prompts": prompts, "shard": shard, "position": position}
            rows.append(record.as_row() | place)
    return pa.Table.from_pylist(rows, schema=PLAN)


def _batches(items: Iterable[Any], size: int) -> Iterator[Sequence[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _short(value: object, limit: int = 80) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= limit else f"{text[:limit]}..."
