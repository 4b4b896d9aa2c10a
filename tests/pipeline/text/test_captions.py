"""What prompts a clip gets from its tags, captions and music fields, and why it gets none."""

from __future__ import annotations

import pytest

from common.schema import Record
from pipeline.catalogs.base import Refusal
from pipeline.text.captions import Kind, TextRules, explain, write_prompts
from pipeline.text.music import music_prompts


def record(**values: object) -> Record:
    return Record("d", str(values), "g", "train", "/x.wav", "f:1", **values)  # type: ignore[arg-type]


LEMMAS = TextRules("lemmas")


def prompts(*records: Record, kind: Kind = "sound", rules: TextRules = LEMMAS) -> list[object]:
    outcomes = write_prompts(records, kind, rules)
    return [o.reason if isinstance(o, Refusal) else o[1] for o in outcomes]


def test_every_record_gets_prompts_or_a_reason() -> None:
    assert prompts(
        record(captions=["A dog is barking", "The dog barks!", "a dog barks"], tags=["Unused"]),
        record(tags=["Dog", "Bark"]),
        record(captions=["There are two of them"], tags=["Dog"]),
        record(captions=["Someone gives a speech"]),
        record(),
    ) == [["dog bark"], ["dog bark"], "empty_prompt", "speech", "no_text"]
    assert prompts(record(tags=["Speech"]), rules=TextRules("lemmas", speech="keep")) == [
        ["speech"]
    ]


def test_music_variants_are_seeded_and_merge_the_fields() -> None:
    track = record(captions=["A calm tune."], tags=["piano"], genre="jazz", bpm=90.0)
    variants = music_prompts(track, 16, seed=1)
    assert variants[0] == "A calm tune"
    assert variants == music_prompts(track, 16, seed=1) != music_prompts(track, 16, seed=2)
    assert len(set(variants)) == len(variants) > 4
    for part in ("genre: jazz", "bpm: 90", "tags: piano"):
        assert any(part in text for text in variants)
    assert music_prompts(record(genre="jazz"), 4, seed=0)[0] == "genre: jazz"
    assert music_prompts(record(), 4, seed=0) == []


def test_the_rules_reach_tags_and_speech() -> None:
    clip = record(tags=["Dog", "Animal", "Talk show"])
    ancestors = {"dog": frozenset({"animal"})}
    specific = TextRules("lemmas", tags="specific", ancestors=ancestors)
    assert prompts(clip) == [["dog animal talk show"]]
    assert prompts(clip, rules=specific) == [["dog talk show"]]
    assert prompts(clip, rules=TextRules("lemmas", speech="wide")) == ["speech"]
    assert prompts(clip, rules=TextRules("lemmas", speech_terms=("talk show",))) == ["speech"]


def test_a_clip_is_explained_step_by_step() -> None:
    clip = record(captions=["A dog is barking", "2 dogs bark!"], tags=["Dog"])
    assert explain(clip, "sound", LEMMAS) == [
        ("tags", "Dog"),
        ("captions", "A dog is barking | 2 dogs bark!"),
        ("lowercased", "a dog is barking | 0 dogs bark!"),
        ("stop words and numbers removed", "dog barking | dogs bark"),
        ("lemmas", "dog bark | dog bark"),
        ("speech (term)", "none"),
        ("prompts", "dog bark"),
    ]
    tagged = record(tags=["Dog", "Male speech, man speaking"])
    assert explain(tagged, "sound", LEMMAS) == [
        ("tags", "Dog | Male speech, man speaking"),
        ("captions", ""),
        ("pseudo-sentence (unique)", "dog male speech man speaking"),
        ("speech (term)", "found in: Male speech, man speaking"),
        ("refused", "speech: Male speech, man speaking"),
    ]
    assert explain(record(), "sound", TextRules("lemmas", speech="keep"))[2:] == [
        ("speech (keep)", "not looked for"),
        ("refused", "no_text: neither tags nor captions"),
    ]


@pytest.mark.parametrize("kind", ["sound", "music"])
@pytest.mark.parametrize("rules", [LEMMAS, TextRules("plain", speech="keep", tags="all", seed=3)])
def test_the_last_step_is_what_is_written(kind: Kind, rules: TextRules) -> None:
    for clip in (
        record(captions=["A slow tune. ", "There are two"], tags=["piano"], genre="jazz", bpm=90.0),
        record(tags=["Dog", "dog"]),
        record(captions=["of the 12"]),
        record(captions=["a speech"], tags=["Speech"]),
        record(),
    ):
        (outcome,) = write_prompts([clip], kind, rules)
        last = explain(clip, kind, rules)[-1]
        if isinstance(outcome, Refusal):
            assert last == ("refused", f"{outcome.reason}: {outcome.detail}")
        else:
            assert last == ("prompts", " | ".join(outcome[1]))
