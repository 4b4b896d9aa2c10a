"""The plan: which clips are encoded, with which prompts, into which shard, and which are refused.

Input: catalogs and settings.  Output: Arrow tables; no files are written, except the cache of
prompts.  `decide` accepts or refuses every catalog row.  `build_plan` assigns each accepted row to
a shard (by a hash of the seed and the sample id) and to a position in it (by the sample id).  So
the assignment depends only on the seed, `clips_per_shard` and the set of accepted clips.  The order
of catalogs, rows or workers does not matter.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.errors import AttuneError
from common.parquet_values import ROW_IN_GROUP
from common.prompts import PromptForm
from common.schema import PLAN, REJECTS, SPLITS
from common.uris import remote_uri
from pipeline.catalogs import Catalog, CatalogEntry
from pipeline.catalogs.as_rows import raw_of, rename_files, tables
from pipeline.catalogs.columnar import ColumnarCatalog, Piece
from pipeline.config import OverlapPolicy
from pipeline.plan.leakage import check_held_out, refuse_leaks, strictness
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
    release_memory,
    sources_of,
)
from pipeline.text.captions import TextRules
from pipeline.text.columns import (
    TEXTS_PER_CHUNK,
    assign,
    collect,
    normalize_chunk,
    speech_counts,
    unique_texts,
)
from pipeline.text.prompt_cache import keep_prompts, known_prompts


@dataclass
class CatalogCount:
    """Row counts of one catalog: read = accepted + merged + held out + refused."""

    read: int
    accepted: int
    merged: int
    held_out: int
    splits: dict[str, int]
    """Number of accepted rows, by split (`SPLITS`)."""
    refused: dict[str, int]
    """Number of refused rows, by reason."""
    speech: dict[str, int]
    """Number of rows that each policy of `SPEECH_POLICIES` would refuse, also those not active."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Decision:
    """The result of `decide`: every catalog row, accepted or refused, and the counts."""

    rows: pa.Table
    """All catalog rows in reading order, with the columns `ROWS`, `speech` and `prompts`.  `reason`
    is null for accepted rows."""
    counts: dict[str, CatalogCount]
    overlaps: dict[str, int]
    """Number of clips that two datasets share, by `DATASET + DATASET`."""
    leakage: dict[str, int]
    """Number of rows refused for leakage, by `REFUSED_DATASET <- OTHER_DATASET SPLIT`; SPLIT is
    `hold_out` if the other row is of a hold-out catalog and its own split is not test."""


@dataclass
class PlanTables:
    """The result of `build_plan`."""

    plan: pa.Table
    """`PLAN`, by shard and position."""
    rejects: pa.Table
    """`REJECTS`, in reading order."""
    counts: dict[str, CatalogCount]
    overlaps: dict[str, int]
    leakage: dict[str, int]

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
    """Read all catalogs, accept or refuse every row, and assign accepted rows to shards.

    Raises:
        AttuneError: a catalog cannot be read, or not a single clip is accepted.
    """
    decision = decide(catalogs, rules=rules, overlap=overlap, mapper=mapper)
    rejects = _rejects_of(decision.rows)
    if not sum(count.accepted for count in decision.counts.values()):
        reasons = Counter(rejects["reason"].to_pylist()).most_common(3)
        counted = ", ".join(f"{reason} {number}" for reason, number in reasons) or "no rows"
        first = rejects.slice(0, 1).to_pylist()
        example = f"; first: {first[0]['source']}: {first[0]['detail']}" if first else ""
        raise AttuneError(f"not one of {len(rejects)} catalog rows is usable: {counted}{example}")
    # Column by column, so that `_plan_table` can free each after use.
    columns = dict(zip(decision.rows.column_names, decision.rows.columns, strict=True))
    decision.rows = _NO_ROWS
    release_memory()
    plan = _plan_table(columns, clips_per_shard, seed)
    return PlanTables(plan, rejects, decision.counts, decision.overlaps, decision.leakage)


def decide(
    catalogs: Sequence[CatalogEntry],
    *,
    rules: TextRules,
    overlap: OverlapPolicy = "keep",
    mapper: Mapper = map_here,
) -> Decision:
    """Accept or refuse every catalog row, with a reason for each refusal.

    Raises:
        AttuneError: a catalog cannot be read, or a damaged row leaves it open which clip is held
            out (`check_held_out`).
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
    release_memory()
    held_out = np.repeat(
        [catalog.role == "hold_out" for catalog in catalogs],
        [sum(map(len, part)) for part in located],
    )
    parts = [table for part in located for table in part]
    texts = unique_texts(parts, rules)
    prompts = known_prompts(texts, rules.prompts)
    made: dict[str, str] = {}
    texts = [text for text in texts if text not in prompts]
    chunks = [texts[i : i + TEXTS_PER_CHUNK] for i in range(0, len(texts), TEXTS_PER_CHUNK)]
    for table in mapper(partial(normalize_chunk, rules.prompts), chunks):
        made.update(zip(table["text"].to_pylist(), table["prompt"].to_pylist(), strict=True))
    keep_prompts(made, rules.prompts)
    prompts |= made
    rows = pa.concat_tables([_NO_ROWS, *(assign(table, prompts, rules) for table in parts)])
    del parts, located
    check_held_out(rows, held_out)
    rows = _refuse_duplicates(rows)
    rows, leakage = refuse_leaks(rows, held_out)
    rows, overlaps = resolve_overlaps(rows, [c.label for c in catalogs], overlap)
    counts = _count(rows, list(dict.fromkeys(catalog.label for catalog in catalogs)))
    return Decision(rows, counts, overlaps, leakage)


def hash_inputs(inputs: Mapping[str, Any]) -> str:
    """The plan's hash: 32 hex digits over everything that determines the content of the shards."""
    canonical = json.dumps(inputs, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def differing_inputs(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The differences between the inputs of two plans, each as `key: old -> new`."""
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


_PLAIN = TextRules(PromptForm("plain"))
_NO_ROWS = assign(collect(ROWS.empty_table(), "sound", _PLAIN), {}, _PLAIN)


def _read(work: tuple[int, CatalogEntry, Piece | None, TextRules]) -> Iterator[pa.Table]:
    """Read a piece of a catalog; add pseudo-sentences and the texts that must be normalized."""
    number, listed, piece, rules = work
    catalog = listed.fetched()
    names = _original_names(listed, catalog)
    if isinstance(catalog, ColumnarCatalog):
        assert piece is not None
        parts: Iterable[pa.Table] = [catalog.read_piece(piece)]
    else:
        assert isinstance(catalog, Catalog)
        parts = tables(catalog.read(), catalog.label)
    columns_read = catalog.text_columns()
    for table in parts:
        table = rename_files(table, names) if names else table
        if catalog.role == "hold_out":
            here = np.asarray(is_in(table))
            table = refuse_where(table, here, "catalog", HELD_OUT, [""] * int(here.sum()))
        table = collect(table, catalog.text_kind, rules, columns_read)
        yield table.replace_schema_metadata({"catalog": str(number)})


def _pieces(catalog: CatalogEntry) -> Sequence[Piece | None]:
    here = catalog.fetched()
    return here.pieces() if isinstance(here, ColumnarCatalog) else [None]


def _original_names(listed: CatalogEntry, fetched: CatalogEntry) -> dict[str, str]:
    """{local copy: URI or path of the original}, for the files that were fetched."""
    pairs = zip(fetched.sources(), listed.sources(), strict=True)
    return {str(a): remote_uri(b) or str(b) for a, b in pairs if a != b}


def _refuse_duplicates(rows: pa.Table) -> pa.Table:
    """Keep one of the rows with the same sample id: the first one of the strictest split."""
    here = np.flatnonzero(is_in(rows))
    words = id_words(rows["sample_id"].take(pa.array(here)))
    by_id = np.argsort(words[:, 0], kind="stable")
    same = words[by_id[1:], 0] == words[by_id[:-1], 0]
    if not same.any():
        return rows
    members = np.union1d(by_id[1:][same], by_id[:-1][same])
    strict = strictness(rows)[here]
    stays: dict[tuple[int, int], int] = {}
    ranked = sorted(members.tolist(), key=lambda i: (-strict[i], i))
    loses = [i for i in ranked if stays.setdefault(tuple(words[i].tolist()), i) != i]
    refused = np.zeros(len(rows), bool)
    refused[here[loses]] = True
    kept = {int(here[i]): int(here[stays[tuple(words[i].tolist())]]) for i in loses}
    order = pa.array([kept[int(i)] for i in np.flatnonzero(refused)], pa.int64())
    sources = sources_of(rows["file"].take(order), rows["line"].take(order)).to_pylist()
    details = [f"the same clip as {source}" for source in sources]
    return refuse_where(rows, refused, "catalog", "duplicate", details)


def _count(rows: pa.Table, labels: Sequence[str]) -> dict[str, CatalogCount]:
    counts = {}
    dataset = plain(rows["dataset"])
    for label in labels:
        own = rows.select(["reason", "split", "speech"]).filter(pc.equal(dataset, label))
        by_reason = plain(own["reason"]).value_counts().to_pylist()
        numbers = {entry["values"]: entry["counts"] for entry in by_reason}
        accepted, merged, held_out = (numbers.pop(key, 0) for key in (None, MERGED, HELD_OUT))
        refused = dict(sorted(numbers.items()))
        split = plain(own["split"].filter(is_in(own)))
        splits = {name: pc.sum(pc.equal(split, name)).as_py() or 0 for name in SPLITS}
        counts[label] = CatalogCount(
            len(own), accepted, merged, held_out, splits, refused, speech_counts(own)
        )
    counted = sum(count.read for count in counts.values())
    assert counted == len(rows), f"{len(rows)} rows read, but {counted} rows counted"
    return counts


def _rejects_of(rows: pa.Table) -> pa.Table:
    refused = pc.invert(pc.or_kleene(is_in(rows), pc.is_in(plain(rows["reason"]), _NOT_REFUSED)))
    order = pa.array(np.flatnonzero(refused))
    columns = {name: plain(rows[name].take(order)) for name in REJECTS.names if name in _DIRECT}
    ids = rows["sample_id"].take(order)  # null if the row is not a clip
    shown = hex_ids(pc.fill_null(ids, bytes(16)))
    columns["sample_id"] = pc.if_else(pc.is_valid(ids), shown, None)
    columns["source"] = sources_of(rows["file"].take(order), rows["line"].take(order))
    columns["raw"] = raw_of(rows, order)
    return pa.table([columns[name] for name in REJECTS.names], schema=REJECTS)


_DIRECT = ("dataset", "native_id", "stage", "reason", "detail")
_NOT_REFUSED = pa.array([MERGED, HELD_OUT])


def _plan_table(rows: dict[str, pa.ChunkedArray], clips_per_shard: int, seed: int) -> pa.Table:
    """`PLAN` from the columns of `Decision.rows`; the dict is emptied to free memory.

    The shard of a clip is random, but a function of the seed and the clip's id: clips are ranked by
    a hash of both, and `clips_per_shard` consecutive ranks form a shard.  So every shard is a fair
    sample of all datasets, which training needs, and the order of catalogs and rows does not
    matter.  If a clip is added, at most one clip moves across each shard border after it.

    Clips in one row group of a Parquet file are read together, so they form a block, which has the
    rank of its clip with the smallest id.  Any other clip is a block of its own.  So a shard reads
    few row groups, and is a sample of row groups where it would be a sample of clips.

    Rows that are read together are stored together.  Inside a shard, clips are sorted by id, and
    the clips of a block come after its first one.  The shard's tar has the same order.  A row group
    of plan.parquet holds whole shards (`frozen_plan`).  New chunks of the text cache are cut in the
    order of the plan, so a shard's prompts are in few chunks (`text_cache`).
    """
    here = np.flatnonzero(pc.is_null(rows["reason"]))
    for name in rows.keys() - {*PLAN.names, "file", "line"}:
        del rows[name]
    words = id_words(rows["sample_id"].take(pa.array(here)))
    # The sample id is already a hash.  XOR with the seed gives another order for each seed.
    salt = int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=8).digest(), "big")
    rank = _inverse(_argsort(_mix(words[:, 0] ^ np.uint64(salt)), words))
    by_id = _argsort(words[:, 0], words)
    if len(members := _in_row_groups(rows["audio_uri"], here)):
        uris = rows["audio_uri"].take(pa.array(here[members]))
        leaders = _leaders(uris, members, by_id)
        rank = _inverse(_side_by_side(_inverse(rank), members, leaders))
        by_id = _side_by_side(by_id, members, leaders)
    # Sort by id first, then stably by shard: inside a shard, clips stay in this order.
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
            release_memory()
    return pa.table([done[name] for name in PLAN.names], schema=PLAN)


def _in_row_groups(uris: pa.ChunkedArray, here: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of the rows `here` have their audio in a row group of a Parquet file."""
    is_value = np.asarray(pc.fill_null(pc.starts_with(uris, "value:"), False))
    return np.flatnonzero(is_value[here])


def _leaders(
    uris: pa.ChunkedArray, members: NDArray[np.int64], by_id: NDArray[np.int64]
) -> NDArray[np.int64]:
    """For each member of a block, the member of the same block with the smallest sample id.

    Args:
        uris: the addresses of the members; a block is a row group.
        members: numbers of the rows.
        by_id: numbers of all rows, by sample id.
    """
    groups = pc.replace_substring_regex(plain(uris), ROW_IN_GROUP, r"\1")
    block = np.asarray(groups.dictionary_encode().indices)
    place = _inverse(by_id)[members]
    smallest = np.full(block.max() + 1, len(by_id))
    np.minimum.at(smallest, block, place)
    return by_id[smallest[block]]


def _side_by_side(
    order: NDArray[np.int64], members: NDArray[np.int64], leaders: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The order (row numbers) with each block's members together, where their leader is."""
    place = _inverse(order)
    block_place = place.copy()
    block_place[members] = place[leaders]
    return np.lexsort((place, block_place))


def _inverse(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place of each row in an order of row numbers."""
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return place


def _argsort(keys: NDArray[np.uint64], words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Indices that sort the rows by key; rows with equal keys are sorted by the full sample id."""
    order = np.argsort(keys, kind="stable")
    if (keys[order[1:]] == keys[order[:-1]]).any():
        order = np.lexsort((words[:, 1], words[:, 0], keys))
    return order


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finalizer: every input bit affects every output bit."""
    with np.errstate(over="ignore"):
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _short(value: object, limit: int = 80) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= limit else f"{text[:limit]}..."
