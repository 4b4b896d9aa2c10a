"""`catalog check` and `catalog show`: the content of catalogs, and the decision on a clip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.config import TextEncoderConfig
from common.errors import AttuneError
from common.schema import Record
from common.storage import open_store
from common.text_encoder import is_fetched
from pipeline.catalogs import CatalogEntry
from pipeline.catalogs.as_rows import raw_of
from pipeline.datadir.frozen_plan import load_plan
from pipeline.inspect.status import refused_while_encoding
from pipeline.plan.decide import Decision
from pipeline.rows import hex_ids, is_in, plain, sources_of
from pipeline.text.captions import TextRules, explain
from pipeline.text.speech import NEGATION, SpeechPolicy, says_no_speech
from pipeline.text.tokens import count_prompts

_EXAMPLES = 3
_COUNTED = ["prompts", "stated_s", "license", "license_url"]


def check_catalogs(decision: Decision) -> dict[str, Any]:
    """Account for every row of a recipe's catalogs.

    Returns:
        datasets: by label `read`, `accepted`, `merged`, `held_out`, `refused` (by reason), `speech`
        (rows that each policy would drop), `hours` (of accepted rows, as the catalog states them;
        None if it states none), `prompts`, `unique_prompts`, `licenses`, `examples` (of refusals,
        by reason), `splits` (accepted rows), `negations` (`captions` with a negation, and
        `no_speech`: rows that each narrow speech policy would refuse because they say that there is
        no speech); and `overlaps`, `leakage`.
    """
    datasets = {}
    for label, count in decision.counts.items():
        here = pc.equal(plain(decision.rows["dataset"]), label)
        # Only the columns that are counted: two million rows are 500 MB.
        accepted = decision.rows.select(_COUNTED).filter(pc.and_(here, is_in(decision.rows)))
        own = decision.rows.select(["tags", "captions", "speech"]).filter(here)
        datasets[label] = count.as_dict() | _contents(accepted)
        datasets[label]["examples"] = _examples(decision.rows, here)
        datasets[label]["negations"] = _negations(own)
    return {"datasets": datasets, "overlaps": decision.overlaps, "leakage": decision.leakage}


def accepted_prompts(decision: Decision) -> pa.Array:
    """The prompts of all accepted rows, each once."""
    return pc.unique(pc.list_flatten(decision.rows["prompts"].filter(is_in(decision.rows))))


def check_prompts(prompts: pa.Array, encoder: TextEncoderConfig) -> dict[str, Any]:
    """`count_prompts`, or `not_counted` with the reason."""
    if not is_fetched(encoder.path):
        return {"not_counted": f"{encoder.path} is not on this machine yet"}
    try:
        return count_prompts(prompts, encoder)
    except AttuneError as error:
        return {"not_counted": str(error)}


def find_rows(
    rows: pa.Table, catalogs: Sequence[CatalogEntry], rules: TextRules, wanted: str
) -> list[dict[str, Any]]:
    """Every catalog row of a clip, and the decision on it.

    Args:
        rows: all rows of the catalogs (`Decision.rows`).
        wanted: a sample id (or at least its first 8 digits), a native id, or a group id such as
            `youtube:ID`, also without `youtube:`.

    Returns:
        For each row: `sample_id`, `dataset`, `source`, `raw`, `outcome`, `detail`, `steps` (name
        and text of each step of the text stage), `prompts`, ...

    Raises:
        AttuneError: there is no such row.
    """
    group = rows["group_id"]
    matches = pc.equal(rows["native_id"], wanted), pc.equal(group, wanted)
    here = np.any(
        [pc.fill_null(m, False) for m in (*matches, pc.ends_with(group, f":{wanted}"))], axis=0
    )
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
    by_label = {catalog.label: catalog for catalog in reversed(catalogs)}
    return [_row(row, by_label, rules) for row in _with_sources(rows.take(pa.array(found[:20])))]


def add_encoding_refusals(rows: Sequence[dict[str, Any]], data_dir: str) -> None:
    """Add to rows of `find_rows` the refusals of the run in `data_dir`, if there was one.

    Raises:
        StorageError: the store cannot be reached.
        AttuneError: the run's files are damaged.
    """
    accepted = {row["sample_id"]: row for row in rows if row["outcome"] == "accepted"}
    is_there = "://" in data_dir or Path(data_dir).expanduser().is_dir()
    plan = load_plan(open_store(data_dir)) if accepted and is_there else None
    for refusal in refused_while_encoding(plan) if plan else ():
        if row := accepted.get(refusal["sample_id"]):
            row["outcome"] = f"{refusal['stage']}: {refusal['reason']}"
            when = "while" if refusal["stage"] == "audio" else "after"
            row["detail"] = f"refused {when} encoding: {refusal['detail']}"


def _contents(rows: pa.Table) -> dict[str, Any]:
    prompts = pc.list_flatten(rows["prompts"])
    stated = rows["stated_s"]
    stated_licenses = pc.coalesce(plain(rows["license"]), plain(rows["license_url"]))
    counts = stated_licenses.value_counts().to_pylist()
    licenses = Counter({entry["values"] or "not stated": entry["counts"] for entry in counts})
    return {
        "hours": round(pc.sum(stated).as_py() / 3600, 3) if stated.null_count < len(rows) else None,
        "without_hours": stated.null_count,
        "prompts": len(prompts),
        "unique_prompts": len(pc.unique(prompts)),
        "licenses": dict(licenses.most_common()),
    }


def _negations(rows: pa.Table) -> dict[str, Any]:
    captions = pc.list_flatten(rows["captions"])
    said = pc.sum(pc.match_substring_regex(captions, NEGATION)).as_py() or 0
    spoken = rows.filter(pc.greater(rows["speech"].fill_null(0), 0)).select(["tags", "captions"])
    narrow: tuple[SpeechPolicy, ...] = ("word", "term")
    no_speech = dict.fromkeys(narrow, 0)
    for batch in spoken.to_batches(max_chunksize=8192):
        for row in batch.to_pylist():
            texts = [*(row["tags"] or ()), *(row["captions"] or ())]
            for policy in narrow:
                no_speech[policy] += says_no_speech(texts, policy)
    return {"captions": said, "no_speech": no_speech}


def _examples(rows: pa.Table, here: pa.Array) -> dict[str, list[dict[str, Any]]]:
    """The first few refusals for each reason, among the rows where `here` is true."""
    reasons = pc.if_else(here, plain(rows["reason"]), None)
    found: dict[str, list[dict[str, Any]]] = {}
    for reason in sorted(pc.unique(reasons.drop_null()).to_pylist()):
        first = np.flatnonzero(pc.fill_null(pc.equal(reasons, reason), False))[:_EXAMPLES]
        some = rows.take(pa.array(first))
        names = ("source", "detail", "raw")
        found[reason] = [{name: row[name] for name in names} for row in _with_sources(some)]
    return found


def _with_sources(rows: pa.Table) -> list[dict[str, Any]]:
    """Rows with `source` (file and line) and `raw` (the row as it is in its file)."""
    sources = sources_of(rows["file"], rows["line"]).to_pylist()
    raws = raw_of(rows, pa.array(range(len(rows)))).to_pylist()
    found = zip(rows.to_pylist(), sources, raws, strict=True)
    return [row | {"source": source, "raw": raw} for row, source, raw in found]


def _row(
    row: dict[str, Any], catalogs: Mapping[str, CatalogEntry], rules: TextRules
) -> dict[str, Any]:
    steps: list[tuple[str, str]] = []
    if row["native_id"] and row["stage"] != "catalog" and row["dataset"] in catalogs:
        catalog = catalogs[row["dataset"]]
        rules = replace(rules, ancestors=catalog.ancestors())
        steps = explain(_record(row), catalog.text_kind, rules)
    reason = row["reason"]
    shown = ("dataset", "native_id", "split", "group_id", "audio_uri", "source", "raw")
    return {"sample_id": row["sample_id"].hex() if row["sample_id"] else None} | {
        **{name: row[name] for name in shown},
        "outcome": "accepted" if reason is None else f"{row['stage']}: {reason}",
        "detail": row["detail"] or "",
        "steps": steps,
        "prompts": row["prompts"] if reason is None else [],
    }


def _record(row: dict[str, Any]) -> Record:
    names = (
        "dataset",
        "native_id",
        "group_id",
        "split",
        "title",
        "artist",
        "genre",
        "bpm",
        "source",
    )
    return Record(
        **{name: row[name] for name in names},
        audio_uri=row["audio_uri"] or "",
        tags=row["tags"] or [],
        captions=row["captions"] or [],
        sample_id=row["sample_id"].hex(),
    )
