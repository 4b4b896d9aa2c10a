"""Captions before and after, as AudioGen's recipe has them."""

from __future__ import annotations

import pytest

from common.prompts import normalize_caption, normalize_captions, normalize_prompts, normalizer_id

PAIRS = {
    "a dog is barking at the park": "dog bark park",
    "Three people are walking; a car's horn honks 12 times.": "people walk car horn honk time",
    "Rustling occurs, ducks quack and water splashes": "rustle occur duck quack water splash",
    "Wood-block & glass (2nd) at 3.5 kHz": "wood block glass khz",
    "There are two of them.": "",
    "   ": "",
    "!!! ... 42": "",
}


def test_captions_become_lemmas_without_stop_words_and_numbers() -> None:
    assert normalize_captions(list(PAIRS)) == list(PAIRS.values())


def test_equal_captions_and_single_ones_agree() -> None:
    texts = ["A dog barks", "a  dog barks", "A DOG BARKS", "rain"]
    assert normalize_captions(texts) == ["dog bark"] * 3 + ["rain"]
    assert normalize_caption("A dog barks") == "dog bark"


@pytest.mark.parametrize("text", [value for value in PAIRS.values() if value])
def test_a_normalized_prompt_stays_as_it_is(text: str) -> None:
    assert normalize_caption(text) == text


def test_the_plain_policy_only_collapses_white_space() -> None:
    assert normalize_prompts(["A  calm\npiano, 90 BPM "], "plain") == ["A calm piano, 90 BPM"]
    assert normalizer_id("plain") != normalizer_id("lemmas")
    assert "spacy-" in normalizer_id("lemmas")
