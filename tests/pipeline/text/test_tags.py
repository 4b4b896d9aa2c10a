"""Labels of AudioSet, FSD50K and VGG-Sound before and after; what an ontology implies; speech."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from common.errors import AttuneError
from pipeline.catalogs.ontology import ancestor_names, tag_name
from pipeline.text.speech import SPEECH_TERMS, SpeechPolicy, find_speech
from pipeline.text.tags import TagPolicy, chosen_tags, pseudo_sentence

LABELS = [
    # AudioSet
    "Male speech, man speaking", "Whimper (dog)", "Crowing, cock-a-doodle-doo", "Hi-hat",
    "Bee, wasp, etc.", "Fire engine, fire truck (siren)", "Dishes, pots, and pans",
    "Children's music",
    # FSD50K
    "Bird_vocalization_and_bird_call_and_bird_song", "Bathtub_(filling_or_washing)",
    # VGG-Sound
    "playing marimba, xylophone", "fly, housefly buzzing", "raining",
]  # fmt: skip


def test_labels_become_their_words_in_lower_case() -> None:
    """Hyphens and apostrophes within a word stay; all other punctuation goes."""
    words = [" ".join(re.findall(r"[a-z'-]+", label.lower())) for label in LABELS]
    assert chosen_tags(LABELS) == words
    assert pseudo_sentence(words, "unique") == " ".join(words)


def test_signs_of_other_scripts_belong_to_words() -> None:
    tags = ["Glo\u0308ckchen", "Glöckchen", "कुत्ता, भौंक", "می\u200cروند", "dog ❤\ufe0f"]
    words = ["glöckchen", "कुत्ता भौंक", "می\u200cروند", "dog"]
    assert chosen_tags(tags) == words
    assert find_speech(["ein Gespra\u0308ch"], "word", ["gespräch"]) == "ein Gespra\u0308ch"
    assert find_speech(["बातें"], "word", ["बात"]) is None  # a whole word, and signs are part of it


def test_punctuation_between_words_is_dropped() -> None:
    assert chosen_tags(["Bird - call", "rain &amp; thunder", "+", "&"]) == [
        "bird call",
        "rain thunder",
    ]


ONTOLOGY = [
    {"id": "/m/a", "name": "Animal", "child_ids": ["/m/d", "/m/b"]},
    {"id": "/m/d", "name": "Dog", "child_ids": ["/m/w"]},
    {"id": "/m/w", "name": "Whimper (dog)", "child_ids": []},
    {"id": "/m/b", "name": "Bird vocalization, bird call", "child_ids": ["/m/s"]},
    {"id": "/m/s", "name": "Squawk", "child_ids": []},
    {"id": "/m/h", "name": "Whimper", "child_ids": ["/m/w"]},
    {"id": "/m/x", "name": "X", "child_ids": ["/m/y"]},
    {"id": "/m/y", "name": "Y", "child_ids": ["/m/x", "/m/z"]},
    {"id": "/m/z", "name": "Z", "child_ids": ["/m/unlisted"]},
]


def test_every_way_up_the_ontology_counts() -> None:
    above = ancestor_names(ONTOLOGY)
    assert above["whimper dog"] == {"dog", "animal", "whimper"}
    assert above["squawk"] == {"bird vocalization bird call", "animal"}
    assert above["animal"] == above["whimper"] == frozenset()
    assert (above["x"], above["y"], above["z"]) == ({"y"}, {"x"}, {"x", "y"})


def test_fsd50k_names_are_found_in_audiosets_ontology() -> None:
    assert tag_name("Bird_vocalization_and_bird_call") == tag_name("Bird vocalization, bird call")
    assert tag_name("Dishes_and_pots_and_pans") == tag_name("Dishes, pots, and pans")


@pytest.mark.parametrize(
    ("policy", "tags", "sentence"),
    [
        ("all", ["Dog", "Animal", "dog"], "dog animal dog"),
        ("unique", ["Dog", "Animal", "dog"], "dog animal"),
        ("specific", ["Dog", "Animal", "dog"], "dog"),
        ("specific", ["Animal", "Whimper (dog)", "Rain", "Whimper", "Squawk"],
         "whimper dog rain squawk"),
        ("specific", ["Squawk", "Bird_vocalization_and_bird_call", "Animal"], "squawk"),
        ("specific", ["Animal"], "animal"),
        ("specific", ["X", "Y"], "x y"),
        ("specific", ["X", "Z"], "z"),
        ("specific", [], ""),
    ],
)  # fmt: skip
def test_tag_policies(policy: TagPolicy, tags: list[str], sentence: str) -> None:
    assert pseudo_sentence(chosen_tags(tags, policy, ancestor_names(ONTOLOGY)), policy) == sentence


def test_specific_tags_need_an_ontology() -> None:
    with pytest.raises(AttuneError, match="ontology"):
        chosen_tags(["Dog"], "specific")


@pytest.mark.parametrize(
    ("text", "dropped_by"),
    [
        ("A man gives a speech", {"word", "term", "wide"}),
        ("Male_speech_and_man_speaking", {"word", "term", "wide"}),
        ("Hubbub, speech noise, speech babble", {"word", "term", "wide"}),
        ("SPEECHES in a hall", {"term", "wide"}),
        ("he is speechless", {"term", "wide"}),
        ("two women are talking", {"wide"}),
        ("a man says hello", {"wide"}),
        ("Narration, monologue", {"wide"}),
        ("Conversation", {"wide"}),
        ("a voice-over", {"wide"}),
        ("an essay on chatter marks", set()),
        ("birds call and a brook babbles", set()),
        ("a loudspeaker hums", set()),
        ("a stalk snaps in the sand", set()),
    ],
)
def test_how_wide_each_speech_policy_is(text: str, dropped_by: set[str]) -> None:
    for policy in get_args(SpeechPolicy):
        found = find_speech(["Rain", "wind blows", text], policy)
        assert found == (text if policy in dropped_by else None)


@pytest.mark.parametrize(
    ("terms", "text", "is_found"),
    [
        (["shout"], "a man shouting", False),
        (["shout*"], "a man SHOUTING", True),
        (["*berto"], "an alberto call", True),
        (["talk show"], "a Talk  show", True),
        (["talk show"], "talk_show", True),
        (["talk show"], "talk shows", False),
        (["c++ (lang)"], "in c++ (lang)", True),
        (["", " ", "*"], "anything", False),
    ],
)
def test_terms_of_the_users_own(terms: list[str], text: str, is_found: bool) -> None:
    policies: tuple[SpeechPolicy, ...] = ("word", "term")
    for policy in policies:
        assert (find_speech([text], policy, terms) == text) is is_found
    assert find_speech([text], "keep", terms) is None


def test_no_term_spans_two_texts() -> None:
    assert find_speech(["phone", "call"], "wide") is None
    assert find_speech(["phone call"], "wide") == "phone call"


def test_every_term_of_wide_is_found_by_itself() -> None:
    assert [t for t in SPEECH_TERMS if find_speech([t.strip("*")], "wide") is None] == []
