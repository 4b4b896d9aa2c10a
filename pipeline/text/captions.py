"""The settings of the text stage, and its steps on one clip for `catalog show`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from common.prompts import PromptForm, TagForm, explain_prompt, normalize_prompts
from common.schema import Record
from pipeline.catalogs.ontology import Ancestors
from pipeline.text.music import music_prompts
from pipeline.text.speech import SpeechPolicy, find_speech
from pipeline.text.tags import TagPolicy, chosen_tags, pseudo_sentence

Kind = Literal["sound", "music"]

_BETWEEN = " | "


@dataclass(frozen=True)
class TextRules:
    """All settings that determine the prompts of a clip."""

    prompts: PromptForm
    tag_form: TagForm = "policy"
    tags: TagPolicy = "unique"
    speech: SpeechPolicy = "term"
    speech_terms: tuple[str, ...] = ()
    """The user's own terms, in addition to the policy's."""
    music_variants: int = 4
    seed: int = 0
    ancestors: Ancestors | None = None
    """Needed for `tags="specific"`; see `pipeline.catalogs.ontology.ancestor_names`."""


def explain(record: Record, kind: Kind, rules: TextRules) -> list[tuple[str, str]]:
    """The text stage on one clip, step by step, as (step, text).

    If a step has several texts, they are joined in their order.  The last step is `prompts`, or
    `refused` with the reason, as `pipeline.text.columns` decides.
    """
    steps = [("tags", _BETWEEN.join(record.tags)), ("captions", _BETWEEN.join(record.captions))]
    if kind == "sound" and not record.captions:
        raw = record.tags
        chosen = chosen_tags(raw, rules.tags, rules.ancestors)
        if rules.tag_form == "policy":
            chosen = normalize_prompts(chosen, rules.prompts)
        prompts = [pseudo_sentence(chosen, rules.tags)] if raw else []
        steps += [(f"pseudo-sentence ({rules.tags}, {rules.tag_form})", text) for text in prompts]
    else:
        raw = record.captions
        if kind == "music":
            raw = music_prompts(record.as_row(), rules.music_variants, rules.seed)
            steps += [("variants", _BETWEEN.join(raw))] if raw else []
        explained = [explain_prompt(text, rules.prompts) for text in raw]
        prompts = [text_steps[-1][1] for text_steps in explained]
        steps += [
            (step[0][0], _BETWEEN.join(text for _, text in step))
            for step in zip(*explained, strict=True)
        ]
    speech = find_speech((*record.tags, *record.captions), rules.speech, rules.speech_terms)
    found = "none" if speech is None else f"found in: {speech}"
    steps.append(
        (f"speech ({rules.speech})", "not looked for" if rules.speech == "keep" else found)
    )
    if speech is not None:
        return [*steps, ("refused", f"speech: {speech}")]
    if not raw:
        return [*steps, ("refused", "no_text: neither tags nor captions")]
    if kept := dict.fromkeys(filter(None, prompts)):
        return [*steps, ("prompts", _BETWEEN.join(kept))]
    return [*steps, ("refused", f"empty_prompt: {empty_detail(raw, rules)}")]


def empty_detail(texts: Sequence[str], rules: TextRules) -> str:
    """The detail of `empty_prompt`: the texts, and the key that would keep their words if any."""
    joined = _BETWEEN.join(texts)
    if rules.prompts.policy == "plain" or not any(map(str.isalnum, joined)):
        return joined
    return f"{joined} (only stop words and numbers; pipeline.text.policy=plain keeps them)"
