"""The speech filter of the sound-effect task (AudioGen, section 4.1), in three widths.

Each policy refuses all that the one before it refuses, and more: `word` < `term` < `wide`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Literal

from common.letters import IN_WORD, compose
from common.words import NEGATIONS

SpeechPolicy = Literal["keep", "word", "term", "wide"]
"""`keep`: nothing is refused.  `word`: the word "speech".  `term`: "speech", also inside a word
("speeches"), as in the paper.  `wide`: all that people call speech, `SPEECH_TERMS`."""

SPEECH_TERMS = (
    "*speech*",
    "speak*", "spoke", "spoken", "talk*", "say", "says", "saying", "said", "tell", "tells",
    "telling", "told", "voice*", "vocaliz*", "convers*", "dialog*", "monolog*", "narrat*",
    "discuss*", "announc*", "lectur*", "interview*", "comment", "comments", "commentat*",
    "commentary", "communicat*", "explain*", "describe", "describes", "describing", "presenter*",
    "chat", "chats", "chatted", "chatting", "chitchat*", "gossip*", "whisper*", "mutter*",
    "mumbl*", "murmur*", "utter", "utters", "uttered", "uttering", "utterance*", "recit*",
    "preach*", "sermon*", "argue", "argues", "argued", "arguing", "argument*", "address the",
    "addresses the", "addressing the", "ask", "asks", "asked", "asking", "answers", "answered",
    "reply", "replies", "replied", "replying", "exclaim*", "shout*", "yell", "yells", "yelled",
    "yelling", "phone call", "phone calls", "radio broadcast*", "newscast*",
)  # fmt: skip
"""Terms of `wide`: words, or beginnings of words (with a `*`).

Left out: words for animals and brooks too (call, chatter, babble, cry, scream), singing, laughter.
"""

_APOSTROPHES = "'\u2019"
NEGATION = rf"(?i)(?:\b(?:{'|'.join(sorted(NEGATIONS))})|n[{_APOSTROPHES}]t)\b"
"""Pattern of a word that negates, for Arrow."""
_NO_SPEECH = re.compile(rf"{NEGATION}\s+(?:[\w-]+\s+){{0,2}}speech")
_BY_POLICY: Mapping[SpeechPolicy, tuple[str, ...]] = {
    "keep": (),
    "word": ("speech",),
    "term": ("*speech*",),
    "wide": SPEECH_TERMS,
}


def find_speech(
    texts: Iterable[str], policy: SpeechPolicy = "term", extra_terms: Sequence[str] = ()
) -> str | None:
    """The first text with a term of the policy, None if there is none.

    Args:
        texts: the tags and captions of a clip.
        extra_terms: the user's own, for any policy except `keep`: whole words (or several in a
            row, in any case).  A `*` at an end matches any continuation of the word ("shout*").
    """
    if policy == "keep":
        return None
    pattern = _pattern((*_BY_POLICY[policy], *extra_terms))
    return next((text for text in texts if pattern.search(_folded(text))), None)


def says_no_speech(texts: Iterable[str], policy: SpeechPolicy) -> bool:
    """Whether a policy finds speech in the texts only where they say that there is none.

    "A factory. (No distinct speech)", but not "speech (Slovak), no traffic": the negation is before
    the word, at most two words away, without punctuation between.
    """
    texts = list(texts)
    rest = (_NO_SPEECH.sub("", text) for text in texts)
    return find_speech(texts, policy) is not None and find_speech(rest, policy) is None


@lru_cache(maxsize=256)
def _pattern(terms: tuple[str, ...]) -> re.Pattern[str]:
    """A pattern for any of the terms in `_folded` text; "_" separates words like a blank."""
    terms = tuple(filter(None, (_folded(term.strip()) for term in terms)))
    # Terms that start a word are tried at the starts of words only, all at once: ten times as fast
    # as one search per term.
    inside = [_ending(term) for term in terms if term.startswith("*")]
    leading = [_ending(term) for term in terms if not term.startswith("*")]
    first = "".join(sorted({re.escape(term[0]) for term in terms}))
    at_start = rf"(?<!{IN_WORD})(?=[{first}])(?:{'|'.join(leading)})" if leading else r"(?!)"
    return re.compile("|".join([*inside, at_start]))


def _folded(text: str) -> str:
    return compose(compose(text).casefold())


def _ending(term: str) -> str:
    words = r"[\s_]+".join(re.escape(word) for word in term.strip("*").split())
    if not words:
        return r"(?!)"
    return words if term.endswith("*") else rf"{words}(?!{IN_WORD})"
