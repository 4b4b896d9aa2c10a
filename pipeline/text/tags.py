"""Pseudo-sentences from tags, by concatenation (AudioGen): ["Dog", "Bark"] -> "dog bark"."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from common.errors import AttuneError
from common.prompts import tag_words
from pipeline.catalogs.ontology import Ancestors, implied_names, tag_name

TagPolicy = Literal["all", "unique", "specific"]
"""`all`: tags as listed.  `unique`: repeated tags once.  `specific`: also without the tags that
another tag of the clip implies ("Animal" beside "Dog")."""


def chosen_tags(
    tags: Sequence[str], policy: TagPolicy = "unique", ancestors: Ancestors | None = None
) -> list[str]:
    """The tags that a policy keeps, in their order: in lower case, without punctuation.

    A label with a comma stays one label: "Male speech, man speaking" -> "male speech man speaking".

    Raises:
        AttuneError: `specific` without `ancestors`.
    """
    if policy == "all":
        return [words for tag in tags if (words := tag_words(tag))]
    if policy == "unique":
        return [words for words in dict.fromkeys(map(tag_words, tags)) if words]
    named = {words: tag_name(tag) for tag in tags if (words := tag_words(tag))}
    if policy == "specific":
        if ancestors is None:
            raise AttuneError(
                "text.tags: specific needs to know which tags imply others; give the catalog its "
                "ontology (AudioSet's ontology.json), or set text.tags: unique"
            )
        implied = implied_names(set(named.values()), ancestors)
        named = {words: name for words, name in named.items() if name not in implied}
    return list(named)


def pseudo_sentence(prompts: Iterable[str], policy: TagPolicy) -> str:
    """The prompt of a clip from the prompts of its chosen tags; empty ones are left out."""
    parts = list(filter(None, prompts))
    return " ".join(parts if policy == "all" else dict.fromkeys(parts))
