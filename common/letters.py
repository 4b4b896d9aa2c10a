"""Letters of all scripts, for regular expressions, and one spelling for equal texts.

To Python's `re`, vowel signs and accents that are characters of their own ("कुत्ता", a decomposed
"ü") are no letters: `\\w+` would cut such words at every sign.
"""

from __future__ import annotations

import itertools
import unicodedata

_FIRST, _LAST = 0x300, 0x1E94A
"""The combining marks are between these two, except rare variation selectors."""


def _marks() -> str:
    """The characters of category Mn and Mc, as ranges for a character class."""
    codes = "".join(map(chr, range(_FIRST, _LAST + 1)))
    kinds = map(unicodedata.category, codes)
    marks = [ord(code) for code, kind in zip(codes, kinds, strict=True) if kind in ("Mn", "Mc")]
    # Numbers that follow each other have the same distance to their places in the list.
    groups = itertools.groupby(enumerate(marks), lambda pair: pair[1] - pair[0])
    spans = [[number for _, number in group] for _, group in groups]
    return "".join(f"{chr(span[0])}-{chr(span[-1])}" for span in spans)


MARK = rf"(?![\0-{chr(_FIRST - 1)}])[{_marks()}\u200c\u200d]"
"""A character that belongs to the letter before it: a combining mark, or a zero-width joiner, with
which Persian, Hindi and Malayalam spell words. The first part is for speed: Latin text never needs
the long list."""
LETTER = rf"(?:[^\W\d_]|{MARK})"
IN_WORD = rf"(?:[^\W_]|{MARK})"
"""A letter or a digit."""
WORD = rf"(?:[^\W\d_]+(?:{MARK})*)+"
"""A letter and all letters and marks that follow."""


def compose(text: str) -> str:
    """The text in Unicode's normalization form C: one spelling of "ü", however it was typed."""
    return unicodedata.normalize("NFC", text)
