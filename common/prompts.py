"""Prompts in one form, both for training and for generation.

This is AudioGen's recipe, which the paper follows: lowercase, remove stop words and numbers (digits
and number words), replace words by their lemmas: "a dog is barking at the park" -> "dog bark park".
It is in `common` because generation must treat a user's prompt as the pipeline treated captions.
`prompt_policy` in `summary.json` says which policy a set of shards was made with.

Two libraries implement the recipe. spaCy tags each word in its sentence and lemmatizes by the tag.
NLTK looks up each word by itself in WordNet. They have different stop words, and they differ on
words that can be several parts of speech, so one run never mixes the two policies. `spacy_words.py`
and `wordnet.py` have the words of each, `words.py` has the rules that both follow.
"""

from __future__ import annotations

import html
import importlib
import importlib.metadata
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from common.lemmas import CONTENT_WORDS
from common.letters import IN_WORD, LETTER, MARK, compose
from common.spacy_words import installed_model, spacy_words
from common.wordnet import nltk_data, nltk_words
from common.words import NEGATIONS, Words

PromptPolicy = Literal["lemmas", "lemmas-nltk", "plain"]
"""`lemmas`: the recipe with spaCy. `lemmas-nltk`: the recipe with NLTK's stop words and WordNet.
`plain`: only white space is collapsed (for music descriptions). All three compose characters first
(Unicode's NFC), so a text has one prompt however its accents were typed."""
Negation = Literal["keep", "drop"]
"""`keep`: words that negate stay ("rain without thunder"). `drop`: they go with the other stop
words, as in the paper."""
TagForm = Literal["as_is", "policy"]
"""Tags become prompts `as_is`: in lower case, without punctuation ("people booing"; AudioGen's
pseudo-sentences), or in the form that the `policy` gives captions ("people boo")."""


@dataclass(frozen=True)
class PromptForm:
    """How a text becomes a prompt. Shards and models record it; see `recorded_form`."""

    policy: PromptPolicy
    negation: Negation = "keep"


PROMPT_FORM = ("prompt_policy", "negation", "tag_form")
"""Entries of `summary.json` and `model.json` that state the form of prompts."""


def recorded_form(record: Mapping[str, Any]) -> PromptForm:
    """The form of prompts that a `summary.json` or `model.json` states.

    Older ones state no negation, and the oldest no policy: they dropped negations.
    """
    return PromptForm(record.get("prompt_policy", "lemmas"), record.get("negation", "drop"))


_RULES_VERSION: dict[PromptPolicy, int] = {"lemmas": 7, "lemmas-nltk": 6, "plain": 2}
"""Raise it when a rule below changes the result: it is part of the plan's hash."""


_DIGIT = "[\\d¼-¾⅐-⅞]"
_NUMBER = re.compile(
    # 12, 3.5, 1/2, 3'45", 4x4, 24-7; with the ending of 2nd, 40s, 1940's, but not with "cm".
    rf"(?<!{IN_WORD}){_DIGIT}+(?:[.,:'/\u2044x\u00d7-]*{_DIGIT}+)*"
    rf"(?:(?:st|nd|rd|th|'?s)(?!{IN_WORD}))?"
)
_MARKUP = re.compile(r"</?[a-z][^<>]*>")
_INITIALS = re.compile(rf"(?<!{IN_WORD})(?:[a-z]\.){{1,4}}[a-z](?!{IN_WORD})\.?")
_GLUED = re.compile(rf"(?<={LETTER}{{2}})([.,!?;])(?={LETTER}{{2}})")
_NUMBERED = re.compile(rf"(?<!{IN_WORD})no\. ?(?={_DIGIT})")
_WITHOUT = re.compile(rf"(?<!{IN_WORD})w/o(?:ut)?(?!{IN_WORD})")
_APOSTROPHE = re.compile("[\u2018\u2019]|(?<=n)[`\u00b4\u02bc\uff07](?=t)")
_NO_ONE = re.compile(rf"(?<!{IN_WORD})no[ -]?one(?!{IN_WORD}|-)")
_NOT_IN_WORDS = re.compile(rf"[/\\|_~*+=<>^;#@\u2010-\u2015]|(?<!{IN_WORD})-|-(?!{IN_WORD})")
_NOT_IN_TAGS = re.compile(rf"(?:(?!{MARK})[^\w'&/+-])+|_")


def normalize_prompts(texts: Sequence[str], form: PromptForm) -> list[str]:
    """The prompt of each text, in order; empty if nothing of the text remains.

    Raises:
        AttuneError: the policy's data (spaCy's model, NLTK's data) is not installed.
    """
    if form.policy == "plain":
        return [" ".join(compose(text).split()) for text in texts]
    clean = [clean_text(text) for text in texts]
    # Equal texts are processed once: about one caption in ten repeats another.
    unique = list(dict.fromkeys(clean))
    words = zip(unique, _find_words(unique, form), strict=True)
    done = {text: " ".join(lemma for _, lemma in kept) for text, kept in words}
    return [done[text] for text in clean]


def explain_prompt(text: str, form: PromptForm) -> list[tuple[str, str]]:
    """The steps from a text to its prompt as (step, text).

    Raises:
        AttuneError: as `normalize_prompts`.
    """
    if form.policy == "plain":
        return [("white space collapsed", normalize_prompts([text], form)[0])]
    clean = clean_text(text)
    (words,) = _find_words([clean], form)
    return [
        ("lowercased", clean),
        ("stop words and numbers removed", " ".join(word for word, _ in words)),
        ("lemmas", " ".join(lemma for _, lemma in words)),
    ]


def normalizer_id(policy: PromptPolicy) -> str:
    """An identifier of everything that determines the prompts: rules, library, model or data.

    Raises:
        AttuneError: as `normalize_prompts`.
    """
    rules = f"{policy}-{_RULES_VERSION[policy]}"
    if policy == "lemmas":
        spacy_version = importlib.metadata.version("spacy")
        return f"{rules}+spacy-{spacy_version}+en_core_web_sm-{installed_model()[1]}"
    if policy == "lemmas-nltk":
        version = importlib.metadata.version("nltk")
        return f"{rules}+nltk-{version}+data-{nltk_data().content_hash}"
    return rules


def clean_text(text: str) -> str:
    """Lowercase, decode HTML, compose characters (NFC), replace numbers by "0" ("no. 5" too), "no
    one" by "nobody" and "w/o" by "without", split words that punctuation glued together.

    A number becomes "0" because the tagger looks at a word's neighbours ("honks 12 times"). The "0"
    is removed when the words are picked.
    """
    text = _APOSTROPHE.sub("'", compose(html.unescape(text).lower()))
    text = _WITHOUT.sub("without", _NUMBERED.sub("", _MARKUP.sub(" ", text)))
    text = _NO_ONE.sub("nobody", _NUMBER.sub(" 0 ", text))
    text = _INITIALS.sub(lambda found: found[0].replace(".", ""), text)
    return " ".join(_NOT_IN_WORDS.sub(" ", _GLUED.sub(r"\1 ", text)).split())


@lru_cache(maxsize=1 << 14)
def tag_words(tag: str) -> str:
    """A tag in lower case, with composed characters (NFC), without punctuation."""
    words = _NOT_IN_TAGS.sub(" ", compose(html.unescape(tag).lower())).split()
    return " ".join(word for word in words if any(map(str.isalnum, word)))


def _find_words(texts: Iterable[str], form: PromptForm) -> Iterator[Words]:
    kept = CONTENT_WORDS | NEGATIONS if form.negation == "keep" else CONTENT_WORDS
    return spacy_words(texts, kept) if form.policy == "lemmas" else nltk_words(texts, kept)
