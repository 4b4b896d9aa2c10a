"""Tags -> pseudo-sentence, by concatenation (AudioGen): ["Dog", "Bark"] -> "dog bark"."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from functools import lru_cache
from typing import Any, Literal

from common.errors import AttuneError

TagPolicy = Literal["all", "unique", "specific"]
"""`all`: tags as listed. `unique`: repeated ones once. `specific`: also without those that another
tag of the clip implies ("Animal" beside "Dog")."""

Ancestors = Mapping[str, Set[str]]
"""`tag_name` of a tag -> those of everything above it in its ontology; see `ancestor_names`."""

_NOT_WORD = re.compile(r"[^\w'&/+-]+|_")
_AND = re.compile(r"\band\b ?")


def pseudo_sentence(
    tags: Sequence[str], policy: TagPolicy = "unique", ancestors: Ancestors | None = None
) -> str:
    """Lowercased tags in their order, punctuation dropped.

    A label with a comma stays one label: "Male speech, man speaking" -> "male speech man speaking".

    Raises:
        AttuneError: `specific` without `ancestors`.
    """
    if policy == "all":
        return " ".join(words for tag in tags if (words := _words(tag)))
    named = {words: tag_name(tag) for tag in tags if (words := _words(tag))}
    if policy == "specific":
        if ancestors is None:
            raise AttuneError("tag policy specific needs an ontology to tell which tag is implied")
        implied = implied_names(set(named.values()), ancestors)
        named = {words: name for words, name in named.items() if name not in implied}
    return " ".join(named)


@lru_cache(maxsize=1 << 14)
def tag_name(tag: str) -> str:
    """A tag in the form that `Ancestors` is keyed by, the same for AudioSet and FSD50K.

    FSD50K writes AudioSet's "Bird vocalization, bird call, bird song" as
    `Bird_vocalization_and_bird_call_and_bird_song`, so "and" does not count.
    """
    return " ".join(_AND.sub("", _words(tag)).split())


def ancestor_names(entries: Iterable[Mapping[str, Any]]) -> dict[str, frozenset[str]]:
    """`Ancestors` from the entries of AudioSet's `ontology.json` (keys id, name, child_ids).

    The ontology is a graph: a class with several parents has the ancestors of all of them.  Should
    an edited one hold a cycle, the classes on it are each other's ancestors, none its own.

    Raises:
        AttuneError: an entry lacks one of the keys.
    """
    names: dict[str, str] = {}
    parents: dict[str, list[str]] = {}
    for place, entry in enumerate(entries):
        try:
            names[entry["id"]] = tag_name(entry["name"])
            for child in entry["child_ids"]:
                parents.setdefault(child, []).append(entry["id"])
        except (KeyError, TypeError):
            raise AttuneError(
                f"ontology entry {place} is not one of AudioSet's: id, name or child_ids is missing"
            ) from None
    above: dict[str, frozenset[str]] = {}
    for node, name in names.items():
        seen: set[str] = set()
        todo = list(parents.get(node, ()))
        while todo:
            parent = todo.pop()
            if parent not in seen:
                seen.add(parent)
                todo += parents.get(parent, ())
        # Two classes can share a name; what lies above either is implied by it.
        found = frozenset(names[parent] for parent in seen) - {name}
        above[name] = above.get(name, frozenset()) | found
    return above


@lru_cache(maxsize=1 << 14)
def _words(tag: str) -> str:
    words = _NOT_WORD.sub(" ", html.unescape(tag).lower()).split()
    return " ".join(word for word in words if any(map(str.isalnum, word)))


def implied_names(names: Set[str], ancestors: Ancestors) -> set[str]:
    """Those of the names (`tag_name`) that lie above another one, and not also below it."""
    return {
        name
        for other in names
        for name in names & ancestors.get(other, frozenset())
        if other not in ancestors.get(name, frozenset())
    }
