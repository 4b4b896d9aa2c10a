"""Prompts are made once: what is kept, for which key, and what damage does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import common.lemmas
import common.letters
import common.prompts
from common.prompts import PromptForm
from pipeline.catalogs.audiofolder import AudioFolder
from pipeline.plan.decide import decide
from pipeline.plan.mapping import map_here
from pipeline.text import prompt_cache
from pipeline.text.captions import TextRules
from pipeline.text.columns import normalize_chunk
from pipeline.text.prompt_cache import keep_prompts, known_prompts

FORM = PromptForm("lemmas")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prompts"


def test_a_second_plan_sends_only_new_texts_to_the_mapper(small_corpus: Path) -> None:
    sent: list[str] = []

    def mapper(function: Any, items: Sequence[Any]) -> Iterable[pa.Table]:
        if getattr(function, "func", None) is normalize_chunk:
            sent.extend(text for chunk in items for text in chunk)
        return map_here(function, items)

    def rows(*, policy: Any = "lemmas") -> list[list[str]]:
        sent.clear()
        catalog = AudioFolder(root=small_corpus)
        rules = TextRules(PromptForm(policy))
        return decide([catalog], rules=rules, mapper=mapper).rows["prompts"].to_pylist()  # type: ignore[arg-type]

    first = rows()
    assert "A tone is humming in the hall" in sent
    assert rows() == first and sent == []
    keep_prompts({"A tone is humming in the hall": "kept"}, FORM)
    assert ["kept"] in rows()
    assert ["A tone is humming in the hall"] in rows(policy="plain")


def test_prompts_are_kept_for_their_form_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_prompts({"a": "1", "b": ""}, FORM)
    keep_prompts({"b": "2"}, FORM)
    assert known_prompts(["a", "b", "c"], FORM) == {"a": "1", "b": "2"}
    assert known_prompts(["a"], PromptForm("lemmas", "drop")) == {}
    with monkeypatch.context() as patch:
        patch.setattr(prompt_cache, "normalizer_id", lambda policy: f"{policy}-other")
        assert known_prompts(["a"], FORM) == {}
    for module in (common.prompts, common.lemmas, common.letters):  # with another rule or table
        with monkeypatch.context() as patch:
            patch.setattr(module, "__file__", __file__)
            assert known_prompts(["a"], FORM) == {}


def test_damage_is_made_good(cache: Path) -> None:
    made = {f"text {i}": f"prompt {i * i}" for i in range(1000)}
    keep_prompts(made, FORM)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    footer = range(len(whole) - int.from_bytes(whole[-8:-4], "little") - 8, len(whole))
    for at in (*range(0, len(whole), 97), *footer):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        assert known_prompts(made, FORM).items() <= made.items()
    for size in (0, 100, len(whole) - 1):
        file.write_bytes(whole[:size])
        assert known_prompts(made, FORM) == {}
    keep_prompts(made, FORM)
    assert known_prompts(made, FORM) == made
    assert list(cache.iterdir()) == [file]


def test_the_cache_is_bounded_and_needs_no_disk(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_cache, "MOST_TEXTS", 3)
    keep_prompts({"a": "1", "b": "2"}, FORM)
    keep_prompts({"c": "3", "d": "4"}, FORM)
    assert known_prompts("abcd", FORM) == {"a": "1", "c": "3", "d": "4"}
    for i in range(prompt_cache.MOST_FILES + 2):
        monkeypatch.setattr(prompt_cache, "normalizer_id", lambda policy, i=i: f"{policy}-{i}")
        keep_prompts({"a": "1"}, FORM)
    assert len(list(cache.iterdir())) == prompt_cache.MOST_FILES
    monkeypatch.setenv("ATTUNE_CACHE", __file__)
    keep_prompts({"a": "1"}, FORM)
    assert known_prompts("a", FORM) == {}
