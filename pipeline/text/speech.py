"""The speech filter of the sound-effect task (AudioGen, section 4.1), in three widths.

Each policy drops what the one before it drops, and more: `word` < `term` < `wide`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal

SpeechPolicy = Literal["keep", "word", "term", "wide"]
"""`keep`: nothing is dropped. `word`: the word "speech". `term`: "speech", also inside a word
("speeches"), as the paper has it. `wide`: whatever a person would call speech, `SPEECH_TERMS`."""

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
"""Terms of `wide`: words, or their beginnings where a `*` follows.

Left out: what animals and brooks do as well (call, chatter, babble, cry, scream), singing,
laughter.
"""

_BY_POLICY: Mapping[SpeechPolicy, tuple[str, ...]] = {
    "keep": (),
    "word": ("speech",),
    "term": ("*speech*",),
    "wide": SPEECH_TERMS,
}
_BETWEEN_TEXTS = "\n|\n"


def find_speech(
    tags: Sequence[str],
    captions: Sequence[str],
    policy: SpeechPolicy = "term",
    extra_terms: Sequence[str] = (),
) -> str | None:
    """The first tag or caption that the policy objects to, None if there is none.

    Args:
        extra_terms: the user's own, of any policy but `keep`: whole words (or several in a row, any
            case); a `*` at an end lets the word go on there ("shout*").
    """
    if policy == "keep":
        return None
    pattern = _pattern((*_BY_POLICY[policy], *extra_terms))
    return next((text for text in (*tags, *captions) if pattern.search(text.casefold())), None)


def speech_verdicts(
    tags: Sequence[str], captions: Sequence[str], extra_terms: Sequence[str] = ()
) -> dict[SpeechPolicy, bool]:
    """Whether each policy would drop the clip."""
    # One search over all texts; nothing that joins them can be part of a term.
    together = [_BETWEEN_TEXTS.join((*tags, *captions))]
    return {
        policy: find_speech(together, (), policy, extra_terms) is not None for policy in _BY_POLICY
    }


@lru_cache(maxsize=256)
def _pattern(terms: tuple[str, ...]) -> re.Pattern[str]:
    """Matches any of the terms in casefolded text; "_" separates words as a blank does."""
    terms = tuple(filter(None, (term.strip().casefold() for term in terms)))
    # What starts a word is tried at the starts of words alone: ten times as fast as one by one.
    inside = [_ending(term) for term in terms if term.startswith("*")]
    leading = [_ending(term) for term in terms if not term.startswith("*")]
    first = "".join(sorted({re.escape(term[0]) for term in terms}))
    at_start = rf"(?<![^\W_])(?=[{first}])(?:{'|'.join(leading)})" if leading else r"(?!)"
    return re.compile("|".join([*inside, at_start]))


def _ending(term: str) -> str:
    words = r"[\s_]+".join(re.escape(word) for word in term.strip("*").split())
    if not words:
        return r"(?!)"
    return words if term.endswith("*") else rf"{words}(?![^\W_])"
