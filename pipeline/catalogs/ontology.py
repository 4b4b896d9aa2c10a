"""AudioSet's ontology: the names of its classes, and which class implies which."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set
from functools import lru_cache
from pathlib import Path
from typing import Any

from common.errors import AttuneError
from common.prompts import tag_words
from common.tables import intact, read_csv, read_json

Ancestors = Mapping[str, Set[str]]
"""For the `tag_name` of a tag, the `tag_name` of every class above it; see `ancestor_names`."""

_AND = re.compile(r"\band\b ?")


@lru_cache(maxsize=1 << 14)
def tag_name(tag: str) -> str:
    """The key of a tag in `Ancestors`, the same for AudioSet and FSD50K.

    FSD50K writes AudioSet's "Bird vocalization, bird call, bird song" as
    `Bird_vocalization_and_bird_call_and_bird_song`, so "and" is dropped.
    """
    return " ".join(_AND.sub("", tag_words(tag)).split())


def ancestor_names(entries: Iterable[Mapping[str, Any]]) -> dict[str, frozenset[str]]:
    """`Ancestors` from the entries of AudioSet's `ontology.json` (keys id, name, child_ids).

    The ontology is a graph: a class with several parents has the ancestors of all of them.  If an
    edited ontology has a cycle, the classes on it are ancestors of each other, but not of
    themselves.
    """
    names: dict[str, str] = {}
    parents: dict[str, list[str]] = {}
    for entry in entries:
        names[entry["id"]] = tag_name(entry["name"])
        for child in entry["child_ids"]:
            parents.setdefault(child, []).append(entry["id"])
    above: dict[str, frozenset[str]] = {}
    for node, name in names.items():
        seen: set[str] = set()
        todo = list(parents.get(node, ()))
        while todo:
            parent = todo.pop()
            if parent not in seen:
                seen.add(parent)
                todo += parents.get(parent, ())
        # Two classes can share a name; the name implies the ancestors of both.
        found = frozenset(names[parent] for parent in seen) - {name}
        above[name] = above.get(name, frozenset()) | found
    return above


def implied_names(names: Set[str], ancestors: Ancestors) -> set[str]:
    """The names (`tag_name`) that are ancestors of another name and not also its descendants."""
    return {
        name
        for other in names
        for name in names & ancestors.get(other, frozenset())
        if other not in ancestors.get(name, frozenset())
    }


def read_names(class_labels: Path | None, ontology: Path | None) -> dict[str, str]:
    """Display names by machine id, from the files that are given; those of class_labels first.

    Raises:
        AttuneError: a file cannot be read or is another file.
    """
    names = read_class_labels(class_labels) if class_labels else {}
    entries = read_ontology(ontology) if ontology else []
    return {entry["id"]: entry["name"] for entry in entries} | names


def read_ancestors(ontology: Path | None) -> Ancestors | None:
    """`ancestor_names` of an ontology.json; None without the file."""
    return ancestor_names(read_ontology(ontology)) if ontology else None


def read_class_labels(path: Path) -> dict[str, str]:
    """Display names by machine id, from `index,mid,display_name`."""
    rows = read_csv(path, ("index", "mid", "display_name"), skip_initial_space=True)
    return {values["mid"]: values["display_name"] for values in intact(rows)}


def read_ontology(path: Path) -> list[dict[str, Any]]:
    """The entries of AudioSet's ontology.json: `id`, `name`, `child_ids`, ...

    Raises:
        AttuneError: it is another file.
    """
    entries = read_json(path)
    try:
        texts = [t for e in entries for t in (e["id"], e["name"], *e["child_ids"])]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError
    except (TypeError, KeyError):
        raise AttuneError(
            f"{path}: not AudioSet's ontology.json (a list of entries with id, name, child_ids)"
        ) from None
    return list(entries)
