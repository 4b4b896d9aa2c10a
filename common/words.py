"""Rules about words that both libraries share: stop words, numbers, particles, endings."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator

from common.lemmas import AFTER_CAN, OWN_LEMMAS, PHRASAL_VERBS, SET_PHRASES
from common.letters import WORD

NUMBER_WORDS = frozenset({
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
    "hundred", "thousand", "million", "billion", "trillion", "dozen", "once", "twice", "thrice",
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
    "eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth",
    "eighteenth", "nineteenth", "twentieth", "thirtieth", "fortieth", "fiftieth", "sixtieth",
    "seventieth", "eightieth", "ninetieth", "hundredth", "thousandth", "millionth",
})  # fmt: skip
"""Removed like digits; also their plurals ("hundreds of birds")."""

NEGATIONS = frozenset({
    "cannot", "neither", "never", "no", "nobody", "none", "nor", "not", "nothing", "nowhere",
    "without",
})  # fmt: skip
"""Stop words that are kept with `negation: keep`; "n't" and "cannot" are kept as "not", "no one" as
"nobody". "hardly" and the like are no stop words and always stay."""

NOT = re.compile(r"^(?:\w+n't|cannot)$")
CLITIC = re.compile(r"'(?:s|d|m|t|ll|re|ve)?$")
LETTERS = re.compile(rf"{WORD}(?:'{WORD})*")
Words = list[tuple[str, str]]
"""The words that are kept of one text, each with its lemma."""


def pick(
    word: str, lemma: str, is_stop: Callable[[str], bool], kept: Container[str]
) -> Iterator[tuple[str, str]]:
    """The word with its lemma, or nothing if it is a stop word, a number or not a word.

    The lemma is checked too: "have" is a stop word, so "having" must not become the prompt "have".
    Single letters are removed: they remain from "'s", "12 V", "side A". A character of a script
    without capitals can be a whole word ("雨", rain).
    """
    lemma = CLITIC.sub("", OWN_LEMMAS.get(word, lemma))
    is_word = len(lemma) > 1 or lemma.upper() == lemma.lower() != ""
    if is_word and not any(
        form in NUMBER_WORDS or (is_stop(form) and form not in kept) for form in (word, lemma)
    ):
        yield word, lemma


def is_content(word: str, before: str, after: str, last: tuple[str, str] | None) -> bool:
    """Whether the neighbours of one of `DEPENDENT_WORDS` show that it is not a function word.

    `before` and `after` are the next words of the text, empty at its ends; `last` is the last word
    that was kept, with its lemma.
    """
    if word == "can":
        return after not in AFTER_CAN and before not in ("i", "one", "that", "they", "we", "you")
    if word in SET_PHRASES:
        left, right = SET_PHRASES[word]
        return before != left or (right != "" and after != right)
    return last is not None and last[0] == before and last[1] in PHRASAL_VERBS.get(word, ())


_PLAIN_PLURAL = re.compile(r"\w{2}[^aeious']s$")
_SHORT_STEM = re.compile(r"[^aeiou]*(?:qu)?[aeiou][^aeiouwxy]")


def with_silent_e(word: str, stem: str, verbs: Container[str]) -> str:
    """Put back a silent e: "scraping" comes from "scrape", because "scrap" would double its p."""
    is_regular = word in (f"{stem}ing", f"{stem}ed", f"{stem}es")
    longer = f"{stem}e"
    return longer if is_regular and _SHORT_STEM.fullmatch(stem) and longer in verbs else stem


def unknown_lemma(word: str) -> str:
    """The lemma of a word that no dictionary has: "rimshots" loses its s, names in -es do not."""
    return word[:-1] if _PLAIN_PLURAL.search(word) else word
