"""Which stop words stay, and lemmas of the words that sounds are made of, by spaCy."""

from __future__ import annotations

import pytest

from common.lemmas import OWN_LEMMAS
from common.prompts import PromptForm, normalize_prompts

LEMMAS = PromptForm("lemmas")

WORDS_SPELLED_LIKE_STOP_WORDS = {
    "A plane takes off": "plane take off",
    "A truck backing up, trucks backed up": "truck back up truck back up",
    "Coal mine; water well": "coal mine water well",
    "Someone is opening a can, opening can": "open can open can",
    "A bird can be heard": "bird hear",
    "a can opener, soda can": "can opener soda can",
    "Front door: talk show, side door": "front door talk show side door",
    "The bottom of the can": "bottom can",
    "A door at the front of a house, a dog in front of a house": "door front house dog house",
    "on top of the roof, open-top bus, part of a machine": "roof open top bus part machine",
    "A car goes by, cars going by": "car go by car go by",
    "The alarm goes off and the light is turned on": "alarm go off light turn on",
    "A glass is put on the table by a man": "glass put table man",
    "An engine is ticking over and over": "engine tick over",
    "Hands are rubbed together": "hand rub together",
    "A man is using a saw, a saw is used": "man use saw saw use",
}
LEMMAS_FOR_SOUNDS = {
    "Dry leaves rustle as a car leaves.": "dry leaf rustle car leave",
    "Wind blows and leaves rustle; leaves crunch": "wind blow leaf rustle leaf crunch",
    "A train leaves the station": "train leave station",
    "Many species of birds, a goods train, clothes": "species bird goods train clothes",
    "loud splashing, water splashes": "loud splash water splash",
    "people clapping, a clap, clapping": "people clap clap clap",
    "a buzzing noise; a dripping tap; yipping; gusting": "buzz noise drip tap yip gust",
    "a toilet flushed, muffled speech": "toilet flush muffle speech",
    "exciting music, a crowded room": "exciting music crowded room",
    "An old-fashioned vacuum cleaner outdoors": "old fashioned vacuum cleaner outdoors",
    "A sewing machine; a woman is sewing a dress": "sewing machine woman sew dress",
    "a recording in a building in the evening, a wedding": "recording building evening wedding",
    "clothing, ceiling, spring, string, morning": "clothing ceiling spring string morning",
    "A warning bell rings, the bridge lowers": "warning bell ring bridge lower",
    "A train passes from left to right": "train pass left right",
}


@pytest.mark.parametrize("cases", [WORDS_SPELLED_LIKE_STOP_WORDS, LEMMAS_FOR_SOUNDS])
def test_what_is_heard_stays(cases: dict[str, str]) -> None:
    """Users type short prompts without context; the form of a caption stays as it is."""
    assert dict(zip(cases, normalize_prompts(list(cases), LEMMAS), strict=True)) == cases
    assert normalize_prompts(list(cases.values()), LEMMAS) == list(cases.values())


def test_own_lemmas_hold_in_every_policy_without_context() -> None:
    words, lemmas = list(OWN_LEMMAS), list(OWN_LEMMAS.values())
    assert normalize_prompts(words, LEMMAS) == lemmas
    assert normalize_prompts(lemmas, LEMMAS) == lemmas
