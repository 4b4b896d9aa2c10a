"""Tags -> pseudo-sentence, by concatenation (AudioGen): ["Dog", "Bark"] -> "dog bark"."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NOT_WORD = re.compile(r"[^\w'&/+-]+|_")


def pseudo_sentence(tags: Sequence[str]) -> str:
    """Lowercased tags in their order, repeated ones once, punctuation dropped.

    A label with a comma stays one label: "Male speech, man speaking" -> "male speech man speaking".
    """
    words = (" ".join(_NOT_WORD.sub(" ", tag.lower()).split()) for tag in tags)
    return " ".join(dict.fromkeys(word for word in words if word))
