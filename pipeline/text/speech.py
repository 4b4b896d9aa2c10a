"""The speech filter of the sound-effect task (AudioGen, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

_TERM = "speech"


def find_speech(tags: Sequence[str], captions: Sequence[str]) -> str | None:
    """The first tag or caption with the term "speech" in it (any case, also inside a word)."""
    for text in (*tags, *captions):
        if _TERM in text.casefold():
            return text
    return None
