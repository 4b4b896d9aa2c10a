"""Errors as users read them."""

from __future__ import annotations

from common.errors import one_line


def test_one_line_keeps_the_words_and_shortens() -> None:
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line("word " * 100) == ("word " * 100)[:200]
    assert one_line("12345", 3) == "123"
