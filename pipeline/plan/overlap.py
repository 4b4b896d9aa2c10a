"""Clips that two datasets share: AudioCaps is part of AudioSet, Clotho and FSD50K share Freesound.

Such clips are found by the column `clip` and always counted.  A policy keeps or merges them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import OverlapPolicy
from pipeline.rows import MERGED, is_in, plain, refuse_where, sources_of

_LISTS = ("tags", "captions", "prompts")


def resolve_overlaps(
    rows: pa.Table, labels: Sequence[str], policy: OverlapPolicy
) -> tuple[pa.Table, dict[str, int]]:
    """Count the clips that datasets share and, with `merge`, merge tkept rows.

    Args:
        rows: `ROWS` and `prompts`.
        labels: names of the datasets, in the recipe's order.

    Returns:
        The rows, and the number of shared clips by `DATASET + DATASET`.
    """
    candidates = _shared(rows)
    clip = plain(rows["clip"].take(candidates)).to_pylist()
    dataset = plain(rows["dataset"].take(candidates)).to_pylist()
    members: dict[str, list[tuple[int, int, str]]] = {}
    rank = {label: i for i, label in reversed(list(enumerate(labels)))}
    for row, name, label in zip(candidates.to_pylist(), clip, dataset, strict=True):
        members.setdefault(name, []).append((rank[label], row, label))
    found: Counter[str] = Counter()
    others_of: dict[int, list[int]] = {}
    split = plain(rows["split"])
    for group in members.values():
        group.sort()
        present = list(dict.fromkeys(label for _, _, label in group))
        found.update(f"{a} + {b}" for a, b in combinations(present, 2))
        if policy == "merge" and len(present) > 1:
            _, stays, first = group[0]
            rows_of_others = [row for _, row, label in group if label != first]
            others = [row for row in rows_of_others if split[row] == split[stays]]
            if others:
                others_of[stays] = others
    return (_merge(rows, others_of) if others_of else rows), dict(sorted(found.items()))


def _shared(rows: pa.Table) -> pa.Array:
    """Numbers of the accepted rows whose clip is in more than one dataset."""
    here = pc.and_(is_in(rows), pc.is_valid(rows["clip"]))
    numbers = np.flatnonzero(here)
    labels = plain(rows["dataset"].filter(here))
    clips = rows["clip"].filter(here)
    sizes = pc.value_counts(labels).to_pylist()
    if len(sizes) < 2:
        return pa.array([], pa.int64())
    # Hash only the clips of the smaller datasets: the largest may have millions.
    largest = max(sizes, key=lambda entry: entry["counts"])["values"]
    others = pc.not_equal(labels, largest)
    elsewhere = pc.unique(clips.filter(others))
    suspects = pc.or_(others, pc.is_in(clips, value_set=elsewhere))
    table = pa.table({"row": numbers, "clip": clips, "dataset": labels}).filter(suspects)
    owners = table.group_by("clip").aggregate([("dataset", "count_distinct")])
    several = owners.filter(pc.greater(owners["dataset_count_distinct"], 1))["clip"]
    return plain(table["row"].filter(pc.is_in(table["clip"], value_set=several)))


def _merge(rows: pa.Table, others_of: dict[int, list[int]]) -> pa.Table:
    """Add the texts of other rows to a row; `others_of`: their numbers by the number of the row."""
    stays = np.array(sorted(others_of))
    gone = np.zeros(len(rows), bool)
    gone[[row for others in others_of.values() for row in others]] = True
    kept_of = {row: kept for kept, others in others_of.items() for row in others}
    into = pa.array([kept_of[row] for row in sorted(kept_of)])
    sources = sources_of(rows["file"].take(into), rows["line"].take(into)).to_pylist()
    for name in _LISTS:
        column = plain(rows[name])
        texts = (
            [text for row in (kept, *others_of[kept]) for text in column[row].as_py() or []]
            for kept in stays.tolist()
        )
        joined = [list(dict.fromkeys(row)) for row in texts]
        # Arrow lists cannot be changed: append the new lists, and take them for the old.
        order = np.arange(len(rows))
        order[stays] = len(rows) + np.arange(len(stays))
        column = pa.concat_arrays([column, pa.array(joined, column.type)]).take(pa.array(order))
        rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    details = [f"into {source}" for source in sources]
    return refuse_where(rows, gone, "overlap", MERGED, details)
