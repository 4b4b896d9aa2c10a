"""The words of a text and their lemmas by NLTK, which looks up each word in WordNet."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from common.errors import AttuneError
from common.lemmas import DEPENDENT_WORDS
from common.words import (
    CLITIC,
    LETTERS,
    NEGATIONS,
    NOT,
    Words,
    is_content,
    pick,
    unknown_lemma,
    with_silent_e,
)


@dataclass(frozen=True, eq=False)
class _NltkData:
    """NLTK's English stop words and WordNet, as found on this machine.

    `morphy(word, pos)` returns WordNet's base forms of a word as one part of speech, the likeliest
    first; none if the word is not that part of speech.
    """

    stop_words: frozenset[str]
    morphy: Callable[[str, str], list[str]]
    content_hash: str


def nltk_words(texts: Iterable[str], kept: frozenset[str]) -> Iterator[Words]:
    """The words that stay of each text, with their lemmas; `kept`: stop words that stay.

    WordNet has no tags: of `DEPENDENT_WORDS`, those stay that `is_content` recognizes.

    Raises:
        AttuneError: NLTK's data is not installed.
    """
    data = nltk_data()
    stop_words = data.stop_words | NEGATIONS
    is_stop, kept = stop_words.__contains__, kept | DEPENDENT_WORDS

    @cache
    def picked(word: str) -> Words:
        stem = word if word in stop_words else CLITIC.sub("", word)
        return list(pick(stem, _wordnet_lemma(stem, data.morphy), is_stop, kept))

    for text in texts:
        spelled = [NOT.sub("not", word) for word in LETTERS.findall(text)]
        words: Words = []
        for before, word, after in zip(["", *spelled], spelled, [*spelled[1:], ""], strict=False):
            depends = word in DEPENDENT_WORDS and word in stop_words
            if depends and not is_content(word, before, after, words[-1] if words else None):
                continue
            words += picked(word)
        yield words


def _wordnet_lemma(word: str, morphy: Callable[[str, str], list[str]]) -> str:
    """The first base form in WordNet; the word's ending decides the order.

    - `-ing`, `-ed`: verb, then noun, adjective, adverb. Captions say what happens: "barking" should
      become "bark" even where it could be a noun.
    - `-s`: noun, then verb, and a shorter base form before the word itself, because WordNet lists
      many plurals as words ("falls", "wings").
    - else noun, verb, adjective, adverb: "left" and "bit" are not past tenses in captions.

    A word that WordNet does not know only loses a plural's -s.
    """
    if word.endswith("s"):
        forms = [form for pos in "nv" for form in morphy(word, pos)]
        is_plural = len(word) > 3 and not word.endswith(("ss", "us", "is"))
        shorter = [form for form in forms if form != word] if is_plural else []
        return (shorter or forms or [unknown_lemma(word)])[0]
    is_verb = word.endswith(("ing", "ed"))
    for pos in "vnar" if is_verb else "nvar":
        if forms := morphy(word, pos):
            return with_silent_e(word, min(forms, key=len), forms) if is_verb else forms[0]
    return word


_WORDNET_FILES = tuple(
    name for pos in ("noun", "verb", "adj", "adv") for name in (f"index.{pos}", f"{pos}.exc")
)
"""The files that `morphy` reads."""


def nltk_data() -> _NltkData:
    """The data on `nltk.data.path`; read once for each value of the path."""
    data = importlib.import_module("nltk.data")
    return _read_nltk_data(tuple(str(folder) for folder in data.path))


@cache
def _read_nltk_data(path: tuple[str, ...]) -> _NltkData:
    corpora = importlib.import_module("nltk.corpus")
    wordnet, stopwords = _nltk_corpus("wordnet"), _nltk_corpus("stopwords")
    # `corpora.wordnet` replaces its own class at the first use, which is not safe with two threads,
    # so this makes a reader of its own. The multilingual part is never opened.
    reader = corpora.WordNetCorpusReader(wordnet, corpora.wordnet31)
    digest = hashlib.blake2b(digest_size=6)
    for root, names in ((wordnet, _WORDNET_FILES), (stopwords, ("english",))):
        for name in names:
            with root.join(name).open() as file:
                digest.update(hashlib.blake2b(file.read()).digest())
    words = corpora.StopwordsCorpusReader(stopwords, ["english"], encoding="utf8")
    return _NltkData(frozenset(words.words("english")), reader._morphy, digest.hexdigest())


def _nltk_corpus(name: str) -> Any:
    """The root of a corpus, unpacked or as the downloader's zip."""
    find = importlib.import_module("nltk.data").find
    for place in (f"corpora/{name}", f"corpora/{name}.zip/{name}/"):
        try:
            return find(place)
        except LookupError:
            continue
    raise AttuneError(
        f"NLTK's corpus {name} is not installed: python -m nltk.downloader wordnet stopwords "
        "(NLTK looks in the folders of NLTK_DATA and in ~/nltk_data)"
    )
