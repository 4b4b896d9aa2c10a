"""`catalog check` and `catalog show`: what the catalogs hold, and what became of a clip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.errors import AttuneError
from common.schema import Record
from common.storage import open_store
from pipeline.catalogs import CatalogEntry
from pipeline.catalogs.as_rows import raw_of
from pipeline.config import OverlapPolicy
from pipeline.datadir.frozen_plan import load_plan
from pipeline.inspect.status import refused_while_encoding
from pipeline.plan.decide import Decision, decide
from pipeline.rows import hex_ids, is_in, plain, sources_of
from pipeline.text.captions import TextRules, explain

_EXAMPLES = 3


def check_catalogs(
    catalogs: Sequence[CatalogEntry],
    rules: TextRules,
    overlap: OverlapPolicy,
    *,
    look_for_audio: bool,
) -> dict[str, Any]:
    """Read all catalogs of a recipe and account for every row.

    Returns:
        datasets: by label `read`, `accepted`, `merged`, `held_out`, `refused` (by reason), `speech`
        (rows that each policy would drop), `hours` (as the catalog states them, accepted rows; None
        where it states none), `prompts`, `unique_prompts`, `licenses`, `examples` (of refusals by
        reason); and `overlaps`, `leakage`, `look_for_audio`.

    Raises:
        AttuneError: a catalog cannot be read.
    """
    decision = _decide(catalogs, rules, overlap, look_for_audio)
    datasets = {}
    for label, count in decision.counts.items():
        own = decision.rows.filter(pc.equal(plain(decision.rows["dataset"]), label))
        datasets[label] = count.as_dict() | _contents(own.filter(is_in(own)))
        datasets[label]["examples"] = _examples(own)
    return {
        "look_for_audio": look_for_audio,
        "datasets": datasets,
        "overlaps": decision.overlaps,
        "leakage": decision.leakage,
    }


def find_rows(
    catalogs: Sequence[CatalogEntry],
    rules: TextRules,
    overlap: OverlapPolicy,
    wanted: str,
    *,
    look_for_audio: bool,
) -> list[dict[str, Any]]:
    """Every catalog row of a clip, and what became of it.

    Args:
        wanted: a sample id (or at least its first 8 digits), a native id, a group id such as
            `youtube:ID`, or the part of it after the colon.

    Returns:
        For each row: `sample_id`, `dataset`, `source`, `raw`, `outcome`, `detail`, `steps` (name,
        text; of the text stage), `prompts`, ...

    Raises:
        AttuneError: there is no such row.
    """
    rows = _decide(catalogs, rules, overlap, look_for_audio).rows
    here = np.asarray(pc.fill_null(pc.equal(rows["native_id"], wanted), False))
    group = pc.fill_null(pc.equal(rows["group_id"], wanted), False)
    suffix = pc.fill_null(pc.ends_with(rows["group_id"], f":{wanted}"), False)
    here = here | np.asarray(group) | np.asarray(suffix)
    if len(wanted) >= 8 and not set(wanted) - set("0123456789abcdef"):
        named = np.flatnonzero(pc.is_valid(rows["sample_id"]))
        ids = hex_ids(rows["sample_id"].take(pa.array(named)))
        here[named] |= np.asarray(pc.starts_with(ids, wanted))
    found = np.flatnonzero(here)
    if not len(found):
        raise AttuneError(
            f"no catalog row has {wanted!r} as sample id, native id or group id (youtube:ID, "
            "freesound:ID)"
        )
    order = pa.array(found[:20])
    table = rows.take(order)
    sources = sources_of(table["file"], table["line"]).to_pylist()
    raws = raw_of(table, pa.array(range(len(table)))).to_pylist()
    by_label = {catalog.label: catalog for catalog in reversed(catalogs)}
    return [
        _row(table, i, source, raw, by_label, rules)
        for i, (source, raw) in enumerate(zip(sources, raws, strict=True))
    ]


def tell_refused(rows: Sequence[dict[str, Any]], data_dir: str) -> None:
    """Put into rows of `find_rows` what a run refused while encoding, if there was one.

    Raises:
        StorageError: its store cannot be reached.
        AttuneError: its files are damaged.
    """
    accepted = {row["sample_id"]: row for row in rows if row["outcome"] == "accepted"}
    is_there = "://" in data_dir or Path(data_dir).expanduser().is_dir()
    plan = load_plan(open_store(data_dir)) if accepted and is_there else None
    for refusal in refused_while_encoding(plan) if plan else ():
        if row := accepted.get(refusal["sample_id"]):
            row["outcome"] = f"{refusal['stage']}: {refusal['reason']}"
            row["detail"] = f"refused while encoding: {refusal['detail']}"


def _decide(
    catalogs: Sequence[CatalogEntry], rules: TextRules, overlap: OverlapPolicy, look_for_audio: bool
) -> Decision:
    if not look_for_audio:
        catalogs = [catalog.without_audio() for catalog in catalogs]
    return decide(catalogs, rules=rules, overlap=overlap)


def _contents(rows: pa.Table) -> dict[str, Any]:
    prompts = pc.list_flatten(rows["prompts"])
    stated = rows["stated_s"]
    licenses = Counter(
        {
            entry["values"] or "not stated": entry["counts"]
            for entry in pc.coalesce(plain(rows["license"]), plain(rows["license_url"]))
            .value_counts()
            .to_pylist()
        }
    )
    return {
        "hours": round(pc.sum(stated).as_py() / 3600, 3) if stated.null_count < len(rows) else None,
        "without_hours": stated.null_count,
        "prompts": len(prompts),
        "unique_prompts": len(pc.unique(prompts)),
        "licenses": dict(licenses.most_common()),
    }


def _examples(rows: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """The first few refusals for each reason."""
    refused = rows.filter(pc.invert(is_in(rows)))
    reasons = plain(refused["reason"])
    found: dict[str, list[dict[str, Any]]] = {}
    for reason in sorted(pc.unique(reasons).to_pylist()):
        some = refused.filter(pc.equal(reasons, reason)).slice(0, _EXAMPLES)
        sources = sources_of(some["file"], some["line"]).to_pylist()
        raws = raw_of(some, pa.array(range(len(some)))).to_pylist()
        found[reason] = [
            {"source": source, "detail": detail, "raw": raw}
            for source, detail, raw in zip(sources, some["detail"].to_pylist(), raws, strict=True)
        ]
    return found


def _row(
    table: pa.Table,
    i: int,
    source: str,
    raw: str | None,
    catalogs: Mapping[str, CatalogEntry],
    rules: TextRules,
) -> dict[str, Any]:
    row = table.slice(i, 1).to_pylist()[0]
    steps: list[tuple[str, str]] = []
    if row["native_id"] and row["stage"] != "catalog" and row["dataset"] in catalogs:
        catalog = catalogs[row["dataset"]]
        rules = replace(rules, ancestors=catalog.ancestors())
        steps = explain(_record(row, source), catalog.text_kind, rules)
    reason = row["reason"]
    return {
        "sample_id": row["sample_id"].hex() if row["sample_id"] else None,
        "dataset": row["dataset"],
        "native_id": row["native_id"],
        "split": row["split"],
        "group_id": row["group_id"],
        "audio_uri": row["audio_uri"],
        "source": source,
        "raw": raw,
        "outcome": "accepted" if reason is None else f"{row['stage']}: {reason}",
        "detail": row["detail"] or "",
        "steps": steps,
        "prompts": row["prompts"] if reason is None else [],
    }


def _record(row: dict[str, Any], source: str) -> Record:
    names = ("dataset", "native_id", "group_id", "split", "title", "artist", "genre", "bpm")
    return Record(
        **{name: row[name] for name in names},
        audio_uri=row["audio_uri"] or "",
        source=source,
        tags=row["tags"] or [],
        captions=row["captions"] or [],
        sample_id=row["sample_id"].hex(),
    )
