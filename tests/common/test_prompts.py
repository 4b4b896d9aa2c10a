"""Captions before and after, as AudioGen's recipe has them."""

from __future__ import annotations

from dataclasses import replace

from common.prompts import PromptForm, explain_prompt, normalize_prompts, normalizer_id

LEMMAS = PromptForm("lemmas")
PLAIN = PromptForm("plain")

PAIRS = {
    "a dog is barking at the park": "dog bark park",
    "Three people are walking; a car's horn honks 12 times.": "people walk car horn honk time",
    "Rustling occurs, ducks quack and water splashes": "rustle occur duck quack water splash",
    "Wood-block & glass (2nd) at 3.5 kHz": "wood block glass khz",
    "1 1/2 h.p., 3'45\" at 24/7: two-stroke, 4x4, \u00bd": "hp stroke",
    "1940's, 40s; 2nd twenty-fifth; dozens, hundreds": "",
    "sand &amp; gravel <b>poured</b>; rain/hail - both": "sand gravel pour rain hail",
    "they'll stop,it;s over": "stop",
    "hi-hat.then by-pass": "hi hat pass",
    "a bird call, bird calls, birds calling": "bird call bird call bird call",
    "goes going go; makes making make": "go go go make make make",
    "it has been; having; it seems to do so": "",
    "A man is scraping a pan": "man scrape pan",
    "singing; an engine revs, a bell dings; dog barking": "sing engine rev bell ding dog bark",
    "The saw cuts; a terrier in an evening building": "saw cut terrier evening building",
    "There are two of them.": "",
    "   ": "",
    "!!! ... 42": "",
}


def test_captions_become_lemmas_without_stop_words_and_numbers() -> None:
    assert normalize_prompts(list(PAIRS), LEMMAS) == list(PAIRS.values())


def test_equal_captions_and_single_ones_agree() -> None:
    texts = ["A dog barks", "a  dog barks", "A DOG BARKS", "rain"]
    assert normalize_prompts(texts, LEMMAS) == ["dog bark"] * 3 + ["rain"]
    assert normalize_prompts(["A dog barks"], LEMMAS) == ["dog bark"]


def test_a_normalized_prompt_stays_as_it_is() -> None:
    assert normalize_prompts(list(PAIRS.values()), LEMMAS) == list(PAIRS.values())


def test_the_plain_policy_only_collapses_white_space() -> None:
    assert normalize_prompts(["A  calm\npiano, 90 BPM "], PLAIN) == ["A calm piano, 90 BPM"]
    assert normalizer_id("plain") == "plain-2"
    assert normalizer_id("lemmas").startswith("lemmas-7+spacy-")


def test_the_steps_end_in_the_prompt() -> None:
    text = "A  DOG is barking 12 times"
    assert explain_prompt(text, LEMMAS) == [
        ("lowercased", "a dog is barking 0 times"),
        ("stop words and numbers removed", "dog barking times"),
        ("lemmas", normalize_prompts([text], LEMMAS)[0]),
    ]
    assert explain_prompt(text, PLAIN) == [("white space collapsed", "A DOG is barking 12 times")]


def test_a_negation_stays_unless_the_paper_is_read_literally() -> None:
    texts = {
        "rain without thunder": ("rain without thunder", "rain thunder"),
        "there is no speech": ("no speech", "speech"),
        "nobody is talking": ("nobody talk", "talk"),
        "No one's talking, no-one": ("nobody talk nobody", "talk"),
        "it isn\u2019t raining, it can't rain": ("not rain not rain", "rain rain"),
        "it isn\u00b4t raining, it can`t rain": ("not rain not rain", "rain rain"),
        "rain w/o thunder; w/out wind": ("rain without thunder without wind", "rain thunder wind"),
        "Pump no. 5, engine No.1; no. Birds": ("pump engine no bird", "pump engine bird"),
        "music cannot be heard": ("music not hear", "music hear"),
        "birds hardly sing": ("bird hardly sing", "bird hardly sing"),
    }
    for form, place in ((LEMMAS, 0), (replace(LEMMAS, negation="drop"), 1)):
        prompts = [kept[place] for kept in texts.values()]
        assert normalize_prompts(list(texts), form) == prompts
        assert normalize_prompts(prompts, form) == prompts


SCRIPTS = {
    "Glo\u0308ckchen la\u0308uten": "glöckchen läuten",
    "Glöckchen läuten": "glöckchen läuten",
    "雨": "雨",
    "la&#x308;uten": "läuten",
    "कुत्ता भौंक रहा है।बारिश-पानी": "कुत्ता भौंक रहा है बारिश पानी",
    "ക്ഷേത്രം മണി": "ക്ഷേത്രം മണി",
    "صوتُ المَطرِ": "صوتُ المَطرِ",
    "می\u200cروند": "می\u200cروند",
    "घंटी2 पानी.हवा, 3 घंटी": "घंटी पानी हवा घंटी",
}
"""Words with accents, vowel signs and joiners that are characters of their own."""


def test_words_of_other_scripts_stay_whole() -> None:
    assert normalize_prompts(list(SCRIPTS), LEMMAS) == list(SCRIPTS.values())
    assert normalize_prompts(["Glo\u0308ckchen", "Glöckchen"], PLAIN) == ["Glöckchen"] * 2
