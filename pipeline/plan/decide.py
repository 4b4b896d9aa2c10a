"""The plan: which clips are encoded, with which prompts, into which shard; and what is refused.

Catalogs and settings in, Arrow tables out; nothing is written.  `decide` says of every catalog row
what becomes of it, `build_plan` puts the accepted ones in their places.  Shard and position come
from a seeded hash of the sample id, so they depend on the set of accepted clips and on nothing
else: not on the order of the catalogs, of their rows or of any worker.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.errors import AttuneError
from common.prompts import PromptPolicy
from common.schema import PLAN, REJECTS, SPLITS
from common.uris import remote_uri
from pipeline.catalogs import Catalog, CatalogEntry
from pipeline.catalogs.as_rows import raw_of, rename_files, tables
from pipeline.catalogs.columnar import ColumnarCatalog, Piece
from pipeline.config import OverlapPolicy
from pipeline.plan.mapping import Mapper, map_here
from pipeline.plan.overlap import resolve_overlaps
from pipeline.rows import (
    HELD_OUT,
    MERGED,
    ROWS,
    hex_ids,
    id_words,
    is_in,
    plain,
    refuse_where,
    sources_of,
)
from pipeline.text.captions import TextRules
from pipeline.text.columns import (
    SPEECH_POLICIES,
    assign,
    collect,
    normalize_chunk,
    speech_counts,
    text_chunks,
    unique_texts,
)


@dataclass
class CatalogCount:
    """The account of one catalog: read = accepted + merged + held out + all refused."""

    read: int = 0
    merged: int = 0
    held_out: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    speech: Counter[str] = field(default_factory=Counter)
    """Rows that each speech policy would drop, whichever is in force."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "read": self.read,
            "accepted": self.accepted,
            "merged": self.merged,
            "held_out": self.held_out,
            "refused": dict(sorted(self.refused.items())),
            "speech": {policy: self.speech[policy] for policy in SPEECH_POLICIES},
        }


@dataclass
class Decision:
    """What becomes of every row of every catalog."""

    rows: pa.Table
    """`ROWS`, `speech`, `prompts`, in reading order; `reason` is null for accepted rows."""
    counts: dict[str, CatalogCount]
    overlaps: dict[str, int]
    """Clips that two datasets share, by `A + B`."""
    leakage: dict[str, int]
    """Rows kept out of training (or validation), by `DATASET <- DATASET SPLIT`; the second split is
    `hold_out` where that role alone keeps them out."""


@dataclass
class PlanTables:
    """plan: `PLAN`, by shard and position. rejects: `REJECTS`, in reading order."""

    plan: pa.Table
    rejects: pa.Table
    counts: dict[str, CatalogCount]
    overlaps: dict[str, int] = field(default_factory=dict)
    leakage: dict[str, int] = field(default_factory=dict)

    @property
    def n_shards(self) -> int:
        return int(self.plan["shard"][-1].as_py()) + 1 if len(self.plan) else 0


def build_plan(
    catalogs: Sequence[CatalogEntry],
    *,
    rules: TextRules,
    clips_per_shard: int,
    seed: int,
    overlap: OverlapPolicy = "keep",
    mapper: Mapper = map_here,
) -> PlanTables:
    """Read every catalog, decide on every row, and place what is accepted.

    Raises:
        AttuneError: a catalog cannot be read, or not a single clip is accepted.
    """
    decision = decide(catalogs, rules=rules, overlap=overlap, mapper=mapper)
    rejects = _rejects_of(decision.rows)
    if not sum(count.accepted for count in decision.counts.values()):
        reasons = Counter(rejects["reason"].to_pylist()).most_common(3)
        told = ", ".join(f"{reason} {number}" for reason, number in reasons) or "no rows"
        first = rejects.slice(0, 1).to_pylist()
        example = f"; first: {first[0]['source']}: {first[0]['detail']}" if first else ""
        raise AttuneError(f"not one of {len(rejects)} catalog rows is usable: {told}{example}")
    # Handed over column by column, so that none is held twice for long.
    columns = dict(zip(decision.rows.column_names, decision.rows.columns, strict=True))
    decision.rows = _NO_ROWS
    plan = _plan_table(columns, clips_per_shard, seed)
    return PlanTables(plan, rejects, decision.counts, decision.overlaps, decision.leakage)


def decide(
    catalogs: Sequence[CatalogEntry],
    *,
    rules: TextRules,
    overlap: OverlapPolicy = "keep",
    mapper: Mapper = map_here,
) -> Decision:
    """Say of every catalog row what becomes of it.

    Raises:
        AttuneError: a catalog cannot be read.
    """
    ordered = [replace(rules, ancestors=catalog.fetched().ancestors()) for catalog in catalogs]
    work = [
        (number, catalog, piece, ordered[number])
        for number, catalog in enumerate(catalogs)
        for piece in _pieces(catalog)
    ]
    by_catalog: list[list[pa.Table]] = [[] for _ in catalogs]
    for table in mapper(_read, work):
        number = int(table.schema.metadata[b"catalog"])
        by_catalog[number].append(table.replace_schema_metadata(None))
    located = [
        [catalog.locate(pa.concat_tables(part))]
        if part and isinstance(catalog, ColumnarCatalog)
        else part
        for catalog, part in zip(catalogs, by_catalog, strict=True)
    ]
    del by_catalog
    held_out = np.repeat(
        [catalog.role == "hold_out" for catalog in catalogs],
        [sum(map(len, part)) for part in located],
    )
    parts = [table for part in located for table in part]
    prompts: dict[str, str] = {}
    chunks = text_chunks(unique_texts(parts))
    for table in mapper(partial(_normalize, rules.prompts), chunks):
        prompts.update(zip(table["text"].to_pylist(), table["prompt"].to_pylist(), strict=True))
    rows = pa.concat_tables([_NO_ROWS, *(assign(table, prompts) for table in parts)])
    del parts, located
    rows = _refuse_duplicates(rows)
    rows, leakage = _refuse_leaks(rows, held_out)
    rows, overlaps = resolve_overlaps(rows, [c.label for c in catalogs], overlap)
    counts = _count(rows, list(dict.fromkeys(catalog.label for catalog in catalogs)))
    return Decision(rows, counts, overlaps, leakage)


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


_NO_ROWS = assign(collect(ROWS.empty_table(), "sound", TextRules("plain")), {})


def _read(work: tuple[int, CatalogEntry, Piece | None, TextRules]) -> Iterator[pa.Table]:
    """A part of a catalog, with its pseudo-sentences and the texts still to be normalized."""
    number, listed, piece, rules = work
    catalog = listed.fetched()
    names = _original_names(listed, catalog)
    if isinstance(catalog, ColumnarCatalog):
        assert piece is not None
        parts: Iterable[pa.Table] = [catalog.read_piece(piece)]
    else:
        assert isinstance(catalog, Catalog)
        parts = tables(catalog.read())
    columns_told = catalog.text_columns()
    for table in parts:
        table = _name_merged(table, catalog.label)
        table = rename_files(table, names) if names else table
        if catalog.role == "hold_out":
            here = np.asarray(is_in(table))
            table = refuse_where(table, here, "catalog", HELD_OUT, [""] * int(here.sum()))
        table = collect(table, catalog.text_kind, rules, columns_told)
        yield table.replace_schema_metadata({"catalog": str(number)})


def _pieces(catalog: CatalogEntry) -> Sequence[Piece | None]:
    here = catalog.fetched()
    return here.pieces() if isinstance(here, ColumnarCatalog) else [None]


def _original_names(listed: CatalogEntry, fetched: CatalogEntry) -> dict[str, str]:
    """Local copy -> the object in a bucket that it is of."""
    pairs = zip(fetched.sources(), listed.sources(), strict=True)
    return {str(a): remote_uri(b) or str(b) for a, b in pairs if a != b}


def _name_merged(table: pa.Table, label: str) -> pa.Table:
    """Merged rows come without their dataset's name."""
    if not table["dataset"].null_count:
        return table
    named = pc.fill_null(plain(table["dataset"]), label).dictionary_encode()
    return table.set_column(table.schema.get_field_index("dataset"), "dataset", named)


def _normalize(policy: PromptPolicy, chunk: Sequence[str]) -> Iterator[pa.Table]:
    yield normalize_chunk(policy, chunk)


def _strictness(rows: pa.Table) -> NDArray[np.int64]:
    """0 train, 1 valid, 2 test; a row without a split counts as train."""
    return np.asarray(
        pc.index_in(plain(rows["split"]), value_set=pa.array(SPLITS)).fill_null(0), np.int64
    )


def _refuse_duplicates(rows: pa.Table) -> pa.Table:
    """Of rows with one sample id, the one held out most strictly stays, else the first."""
    here = np.flatnonzero(is_in(rows))
    words = id_words(rows["sample_id"].take(pa.array(here)))
    by_id = np.argsort(words[:, 0], kind="stable")
    same = words[by_id[1:], 0] == words[by_id[:-1], 0]
    if not same.any():
        return rows
    members = np.union1d(by_id[1:][same], by_id[:-1][same])
    strict = _strictness(rows)[here]
    stays: dict[tuple[int, int], int] = {}
    ranked = sorted(members.tolist(), key=lambda i: (-strict[i], i))
    loses = [i for i in ranked if stays.setdefault(tuple(words[i].tolist()), i) != i]
    refused = np.zeros(len(rows), bool)
    refused[here[loses]] = True
    kept = {int(here[i]): int(here[stays[tuple(words[i].tolist())]]) for i in loses}
    order = pa.array([kept[int(i)] for i in np.flatnonzero(refused)], pa.int64())
    told = [f"the same clip as {source}" for source in _sources(rows, order).to_pylist()]
    return refuse_where(rows, refused, "catalog", "duplicate", told)


def _refuse_leaks(rows: pa.Table, held_out: NDArray[np.bool_]) -> tuple[pa.Table, dict[str, int]]:
    """Refuse rows that share a group, a clip or an audio file with a row of a stricter split, and
    rows that share one with those in turn.

    Test (2) is stricter than valid (1), valid than train (0).  Three rows:

        row  split  group_id      clip
        A    test   artist:ann    freesound:7
        B    train  cd:1          freesound:7
        C    train  cd:1          freesound:8

    B is the clip of A, so A holds B out.  C shares nothing with A, but it is from the same CD as B,
    so it may sound like the test clip.  The first pass looks at group_id before it knows of B, so
    only the second pass finds C; the third pass finds nothing more and ends the search.  Such a
    chain may have any length: each row that is found may make further rows reachable.

    Rows that were refused for other reasons (no audio, say) hold others out all the same: their
    sound may be in the test set under another name.

    Args:
        held_out: bool [N]; such a row is as strict as a test row, whatever its split.

    Returns:
        The rows, and how many were refused, by `DATASET <- DATASET SPLIT`.
    """
    strict = np.where(held_out, SPLITS.index("test"), _strictness(rows))
    found: Counter[str] = Counter()
    # Test before valid: a row that both hold out is reported as held out by test.
    for level in (2, 1):
        # Per row the number of the row that holds it out; -1 where none does.  The rows of the
        # level itself hold themselves: they are where it starts.
        holder = np.where(strict == level, np.arange(len(rows)), -1)
        grows = bool((holder >= 0).any())
        while grows:
            grows = False
            for name in ("group_id", "clip", "audio_uri"):
                there = np.flatnonzero(holder >= 0)
                keys = plain(rows[name].take(pa.array(there)))
                if name == "audio_uri":  # where no audio was looked for, a name in some folder
                    keys = pc.if_else(pc.match_substring_regex(keys, "^(/|s3:)"), keys, None)
                reached = np.asarray(pc.is_in(rows[name], value_set=pc.unique(keys.drop_null())))
                reached &= (strict < level) & (holder < 0)  # each row once, so that it ends
                if not reached.any():
                    continue
                grows = True
                at = pc.index_in(rows[name].filter(pa.array(reached)), value_set=keys)
                holder[reached] = holder[there[np.asarray(at)]]
                leaks = reached & np.asarray(is_in(rows))
                who = _holders(rows, holder[leaks], held_out)
                shared = rows[name].filter(pa.array(leaks)).to_pylist()
                losers = plain(rows["dataset"].filter(pa.array(leaks))).to_pylist()
                found.update(f"{loser} <- {by}" for loser, by in zip(losers, who, strict=True))
                told = [f"{key} is held out by {by}" for key, by in zip(shared, who, strict=True)]
                rows = refuse_where(rows, leaks, "split", "leakage", told)
    return rows, dict(sorted(found.items()))


def _holders(rows: pa.Table, numbers: NDArray[np.int64], held_out: NDArray[np.bool_]) -> list[str]:
    """`DATASET SPLIT` of the rows with these numbers."""
    order = pa.array(numbers)
    datasets, splits = (plain(rows[name].take(order)).to_pylist() for name in ("dataset", "split"))
    return [
        f"{dataset} {'hold_out' if is_held and split != 'test' else split}"
        for dataset, split, is_held in zip(datasets, splits, held_out[numbers], strict=True)
    ]


def _count(rows: pa.Table, labels: Sequence[str]) -> dict[str, CatalogCount]:
    counts = {label: CatalogCount() for label in labels}
    dataset = plain(rows["dataset"])
    for label, count in counts.items():
        own = rows.select(["reason", "speech"]).filter(pc.equal(dataset, label))
        count.read = len(own)
        count.speech.update(speech_counts(own))
        for entry in plain(own["reason"]).value_counts().to_pylist():
            if entry["values"] is None:
                count.accepted = entry["counts"]
            elif entry["values"] == MERGED:
                count.merged = entry["counts"]
            elif entry["values"] == HELD_OUT:
                count.held_out = entry["counts"]
            else:
                count.refused[entry["values"]] = entry["counts"]
    told = sum(count.read for count in counts.values())
    assert told == len(rows), f"{len(rows)} rows read, {told} accounted for"
    return counts


def _rejects_of(rows: pa.Table) -> pa.Table:
    refused = pc.invert(pc.or_kleene(is_in(rows), pc.is_in(plain(rows["reason"]), _NOT_REFUSED)))
    order = pa.array(np.flatnonzero(refused))
    columns = {name: plain(rows[name].take(order)) for name in REJECTS.names if name in _DIRECT}
    ids = rows["sample_id"].take(order)  # null where a row makes no clip
    shown = hex_ids(pc.fill_null(ids, bytes(16)))
    columns["sample_id"] = pc.if_else(pc.is_valid(ids), shown, None)
    columns["source"] = _sources(rows, order)
    columns["raw"] = raw_of(rows, order)
    return pa.table([columns[name] for name in REJECTS.names], schema=REJECTS)


def _sources(rows: pa.Table, order: pa.Array) -> pa.Array:
    return sources_of(rows["file"].take(order), rows["line"].take(order))


_DIRECT = ("dataset", "native_id", "stage", "reason", "detail")
_NOT_REFUSED = pa.array([MERGED, HELD_OUT])


def _plan_table(rows: dict[str, pa.ChunkedArray], clips_per_shard: int, seed: int) -> pa.Table:
    """`PLAN` from the columns of `Decision.rows`, which are used up.

    Which shard a clip is in is random, but a function of the seed and the clip's id: the clips are
    ranked by a hash of both, and each run of `clips_per_shard` ranks is a shard.  So every shard is
    a fair sample of all datasets, which training wants, and the order of catalogs and rows does not
    matter.  A clip that is added moves at most one clip across each border between two shards
    behind it.

    What is read together lies together: inside a shard clips are in the order of their ids, as in
    its tar; a row group of plan.parquet holds whole shards (`frozen_plan`); prompts are cut into
    chunks of the text cache in this order, so that a shard finds its own in few (`text_cache`).
    """
    here = np.flatnonzero(pc.is_null(rows["reason"]))
    for name in rows.keys() - {*PLAN.names, "file", "line"}:
        del rows[name]
    words = id_words(rows["sample_id"].take(pa.array(here)))
    # The id is a hash already; mixing the seed in makes another order of it.
    salt = int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=8).digest(), "big")
    rank = np.empty(len(here), np.int64)
    rank[_argsort(_mix(words[:, 0] ^ np.uint64(salt)), words)] = np.arange(len(here))
    # Sorted by id first, then stably by shard: inside a shard the order by id stays.
    by_id = _argsort(words[:, 0], words)
    order = by_id[np.argsort(rank[by_id] // clips_per_shard, kind="stable")]
    number = np.arange(len(here))
    done = {
        "shard": pa.array((number // clips_per_shard).astype(np.int32)),
        "position": pa.array((number % clips_per_shard).astype(np.int32)),
    }
    order = pa.array(here[order])
    del here, words, rank, by_id, number
    done["sample_id"] = hex_ids(rows.pop("sample_id").take(order))
    done["source"] = sources_of(rows.pop("file").take(order), rows.pop("line").take(order))
    for name in PLAN.names:
        if name not in done:
            done[name] = plain(rows.pop(name).take(order))
    return pa.table([done[name] for name in PLAN.names], schema=PLAN)


def _argsort(keys: NDArray[np.uint64], words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Order by key; among equal ones by all of the sample id."""
    order = np.argsort(keys, kind="stable")
    if (keys[order[1:]] == keys[order[:-1]]).any():
        order = np.lexsort((words[:, 1], words[:, 0], keys))
    return order


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finalizer: every bit of a word decides about every other."""
    with np.errstate(over="ignore"):
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _short(value: object, limit: int = 80) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= limit else f"{text[:limit]}..."
