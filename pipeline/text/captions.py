"""Records -> prompts: the whole text stage, for a batch of records of one catalog."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from common.prompts import PromptPolicy, explain_prompt, normalize_prompts
from common.schema import Record
from pipeline.catalogs.base import Refusal, refuse
from pipeline.catalogs.ontology import Ancestors
from pipeline.text.music import music_prompts
from pipeline.text.speech import SpeechPolicy, find_speech
from pipeline.text.tags import TagPolicy, pseudo_sentence

Kind = Literal["sound", "music"]

_BETWEEN = " | "


@dataclass(frozen=True)
class TextRules:
    """Everything that decides which prompts a record gets."""

    prompts: PromptPolicy
    tags: TagPolicy = "unique"
    speech: SpeechPolicy = "term"
    speech_terms: tuple[str, ...] = ()
    """The user's own terms, beside the policy's."""
    music_variants: int = 4
    seed: int = 0
    ancestors: Ancestors | None = None
    """What `tags="specific"` goes by; see `pipeline.catalogs.ontology.ancestor_names`."""


def write_prompts(
    records: Sequence[Record], kind: Kind, rules: TextRules
) -> Iterator[tuple[Record, list[str]] | Refusal]:
    """Each record with its prompts, or why it has none, in order.

    A clip's captions are its prompts; one without captions is described by its tags.  Refusals:
    `speech` (a tag or caption names it), `no_text` (neither tags nor captions), `empty_prompt`
    (nothing remains after normalization).
    """
    texts = [_raw_texts(record, kind, rules) for record in records]
    flat = [text for clip in texts for text in clip]
    normalized = iter(normalize_prompts(flat, rules.prompts))
    for record, raw in zip(records, texts, strict=True):
        prompts = [next(normalized) for _ in raw]
        if _is_told_by_tags(record, kind):
            raw, prompts = record.tags, [pseudo_sentence(record.tags, rules.tags, rules.ancestors)]
        speech = find_speech(record.tags, record.captions, rules.speech, rules.speech_terms)
        if speech is not None:
            yield refuse(record, "text", "speech", speech)
        elif not raw:
            yield refuse(record, "text", "no_text", "neither tags nor captions")
        elif kept := list(dict.fromkeys(prompt for prompt in prompts if prompt)):
            yield record, kept
        else:
            yield refuse(record, "text", "empty_prompt", _BETWEEN.join(raw))


def explain(record: Record, kind: Kind, rules: TextRules) -> list[tuple[str, str]]:
    """What the text stage does to one clip, step by step, as (step, text).

    Several texts stand side by side in a step, in their order.  The last step is `prompts`, or
    `refused` with the reason; it is `write_prompts`' own.
    """
    steps = [("tags", _BETWEEN.join(record.tags)), ("captions", _BETWEEN.join(record.captions))]
    if raw := _raw_texts(record, kind, rules):
        if kind == "music":
            steps.append(("variants", _BETWEEN.join(raw)))
        explained = [explain_prompt(text, rules.prompts) for text in raw]
        steps += [
            (step[0][0], _BETWEEN.join(text for _, text in step))
            for step in zip(*explained, strict=True)
        ]
    elif _is_told_by_tags(record, kind):
        sentence = pseudo_sentence(record.tags, rules.tags, rules.ancestors)
        steps.append((f"pseudo-sentence ({rules.tags})", sentence))
    speech = find_speech(record.tags, record.captions, rules.speech, rules.speech_terms)
    found = "none" if speech is None else f"found in: {speech}"
    steps.append(
        (f"speech ({rules.speech})", "not looked for" if rules.speech == "keep" else found)
    )
    (outcome,) = write_prompts([record], kind, rules)
    if isinstance(outcome, Refusal):
        return [*steps, ("refused", f"{outcome.reason}: {outcome.detail}")]
    return [*steps, ("prompts", _BETWEEN.join(outcome[1]))]


def _is_told_by_tags(record: Record, kind: Kind) -> bool:
    return kind == "sound" and bool(record.tags) and not record.captions


def _raw_texts(record: Record, kind: Kind, rules: TextRules) -> list[str]:
    """What the prompt policy applies to; tags have their own form (`pseudo_sentence`)."""
    if kind == "music":
        return music_prompts(record, rules.music_variants, rules.seed)
    return record.captions
