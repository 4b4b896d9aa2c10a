"""Several rows of one clip become one record with all their captions and tags.

A list is read twice.  The first time only finds the clips that have several rows (`survey`), so
that the second time only holds the records of these clips in memory (`merge`).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.schema import SPLITS, Record
from pipeline.catalogs.audio_root import plain_name
from pipeline.catalogs.base import Merged, Outcome, Refusal, refuse
from pipeline.catalogs.values import says_train, span

_DESCRIPTION = (
    "title", "artist", "genre", "bpm", "license", "license_url", "attribution", "stated_s",
)  # fmt: skip


@dataclass(frozen=True)
class Survey:
    """What must be known about all rows of a list before the first one is read."""

    several: Set[int]
    """`_key` of the clips that have more than one row."""
    has_train: bool
    """Whether a row says that its split is train; see `split_of`."""

    def has_several(self, name: object, values: Mapping[str, Any]) -> bool:
        """Whether the clip of a row (the file's name and the row's values) has other rows too."""
        return bool(self.several) and _key(name, values) in self.several


def survey(rows: Iterable[tuple[object, Mapping[str, Any]]]) -> Survey:
    """Survey rows, each given as the file's name and the row's values."""
    found = array("q")  # of millions of rows
    has_train = False
    for name, values in rows:
        has_train = has_train or says_train(values.get("split"))
        found.append(_key(name, values))
    keys = np.sort(np.array(found, np.int64))
    return Survey(set(keys[1:][keys[1:] == keys[:-1]].tolist()), has_train)


def _key(name: object, values: Mapping[str, Any]) -> int:
    """A number that rows of one clip share: of the file's name and the part of the file."""
    try:
        return hash((plain_name(str(name)), span(values)))
    except ValueError:
        return 0  # the row is refused


def merge(outcomes: Iterable[tuple[bool, Record | Refusal]]) -> Iterator[Outcome]:
    """Merge the records of a clip into the first of them, which comes after all other outcomes.

    A row that says another split or another group than the clip's first row is refused.  The clip
    is then in the stricter split of both.

    Args:
        outcomes: each with the result of `Survey.has_several` for its row.
    """
    held: dict[str, Record] = {}
    for has_several, outcome in outcomes:
        if isinstance(outcome, Refusal) or not has_several:
            yield outcome
        elif (first := held.setdefault(outcome.sample_id, outcome)) is not outcome:
            yield _merged(first, outcome)
    yield from held.values()


def _merged(first: Record, later: Record) -> Outcome:
    no_group = f"{first.dataset}:{first.native_id}"  # the group of a file that is given none
    if first.group_id == no_group:
        first.group_id = later.group_id
    for name in ("split", "group_id"):
        ours, other = getattr(later, name), getattr(first, name)
        if ours not in (other, no_group):
            column = name.removesuffix("_id")
            detail = f"{column}: {ours!r}, but {first.source} says {other!r} for the same clip"
            # If one row says test, the clip must not be trained on.
            first.split = max(first.split, later.split, key=SPLITS.index)
            return refuse(later, "catalog", "malformed_row", detail)
    for name in ("captions", "tags"):
        there = getattr(first, name)
        there += [text for text in getattr(later, name) if text not in there]
    for name in _DESCRIPTION:
        if getattr(first, name) is None:
            setattr(first, name, getattr(later, name))
    return Merged(later.source)
