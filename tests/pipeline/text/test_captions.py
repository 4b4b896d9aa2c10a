"""What prompts a clip gets from its tags, captions and music fields, and why it gets none."""

from __future__ import annotations

from dataclasses import replace

from common.prompts import PromptForm, normalize_prompts
from common.schema import Record
from pipeline.catalogs.as_rows import tables
from pipeline.text.captions import TextRules, explain
from pipeline.text.columns import assign, collect, unique_texts
from pipeline.text.music import music_prompts


def record(**values: object) -> Record:
    return Record("d", str(values), "g", "train", "/x.wav", "f:1", **values)  # type: ignore[arg-type]


LEMMAS = TextRules(PromptForm("lemmas"))


def prompts(*records: Record, rules: TextRules = LEMMAS) -> list[object]:
    (table,) = tables(records, "d")
    table = collect(table, "sound", rules)
    texts = unique_texts([table], rules)
    written = dict(zip(texts, normalize_prompts(texts, rules.prompts), strict=True))
    rows = assign(table, written, rules).to_pylist()
    return [row["prompts"] if row["reason"] is None else row["reason"] for row in rows]


def test_every_record_gets_prompts_or_a_reason() -> None:
    assert prompts(
        record(captions=["A dog is barking", "The dog barks!", "a dog barks"], tags=["Unused"]),
        record(tags=["Dog", "Bark"]),
        record(captions=["There are two of them"], tags=["Dog"]),
        record(captions=["Someone gives a speech"]),
        record(),
    ) == [["dog bark"], ["dog bark"], "empty_prompt", "speech", "no_text"]
    assert prompts(record(tags=["Speech"]), rules=replace(LEMMAS, speech="keep")) == [["speech"]]


def test_music_variants_are_seeded_and_merge_the_fields() -> None:
    track = record(captions=["A calm tune."], tags=["piano"], genre="jazz", bpm=90.0)
    row = track.as_row()
    variants = music_prompts(row, 16, seed=1)
    assert variants[0] == "A calm tune"
    assert variants == music_prompts(row, 16, seed=1) != music_prompts(row, 16, seed=2)
    assert len(set(variants)) == len(variants) > 4
    for part in ("genre: jazz", "bpm: 90", "tags: piano"):
        assert any(part in text for text in variants)
    several = record(captions=["A calm tune.", "A piano"], genre="jazz").as_row()
    assert music_prompts(several, 1, seed=0) == ["A calm tune", "A piano"]
    mixed = {text for text in music_prompts(several, 64, seed=0) if ". genre: jazz" in text}
    assert mixed == {"A calm tune. genre: jazz", "A piano. genre: jazz"}
    assert music_prompts(record(genre="jazz").as_row(), 4, seed=0)[0] == "genre: jazz"
    assert music_prompts(record().as_row(), 4, seed=0) == []


def test_the_rules_reach_tags_and_speech() -> None:
    clip = record(tags=["Dog", "Animal", "Talk show"])
    ancestors = {"dog": frozenset({"animal"})}
    as_is = replace(LEMMAS, tag_form="as_is")
    specific = replace(as_is, tags="specific", ancestors=ancestors)
    assert prompts(clip, rules=as_is) == [["dog animal talk show"]]
    assert prompts(clip, rules=specific) == [["dog talk show"]]
    assert prompts(clip, rules=replace(LEMMAS, speech="wide")) == ["speech"]
    assert prompts(clip, rules=replace(LEMMAS, speech_terms=("talk show",))) == ["speech"]


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
        ("pseudo-sentence (unique, policy)", "dog male speech man speak"),
        ("speech (term)", "found in: Male speech, man speaking"),
        ("refused", "speech: Male speech, man speaking"),
    ]
    assert explain(record(), "sound", TextRules(PromptForm("lemmas"), speech="keep"))[2:] == [
        ("speech (keep)", "not looked for"),
        ("refused", "no_text: neither tags nor captions"),
    ]


def test_tags_take_the_form_of_captions_or_stay_as_they_are() -> None:
    clip = record(tags=["People booing", "Bark", "barking"])
    assert prompts(clip, rules=LEMMAS) == [["people boo bark"]]
    assert prompts(clip, rules=replace(LEMMAS, tag_form="as_is")) == [
        ["people booing bark barking"]
    ]


def test_a_text_of_numbers_is_refused_with_the_key_that_keeps_it() -> None:
    _, refusal = explain(record(captions=["One.", "The 2nd"]), "sound", LEMMAS)[-1]
    assert refusal.startswith("empty_prompt: One. | The 2nd (")
    assert "pipeline.text.policy=plain" in refusal
    assert prompts(record(captions=["One."]), rules=TextRules(PromptForm("plain"))) == [["One."]]
    assert explain(record(captions=["?!"]), "sound", LEMMAS)[-1][1] == "empty_prompt: ?!"
