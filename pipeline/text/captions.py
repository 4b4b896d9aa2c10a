"""Records -> prompts: the whole text stage, for a batch of records of one catalog."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from common.prompts import PromptPolicy, normalize_prompts
from common.schema import Record
from pipeline.catalogs.base import Refusal, refuse
from pipeline.text.music import music_prompts
from pipeline.text.speech import find_speech
from pipeline.text.tags import pseudo_sentence


def write_prompts(
    records: Sequence[Record],
    kind: Literal["sound", "music"],
    policy: PromptPolicy,
    drop_speech: bool,
    music_variants: int,
    seed: int,
) -> Iterator[tuple[Record, list[str]] | Refusal]:
    """Each record with its prompts, or why it has none, in order.

    A clip's captions are its prompts; one without captions is described by its tags.  Refusals:
    `speech` (a tag or caption names it), `no_text` (neither tags nor captions), `empty_prompt`
    (nothing remains after normalization).
    """
    texts = [_raw_texts(record, kind, music_variants, seed) for record in records]
    flat = [text for clip in texts for text in clip]
    normalized = iter(normalize_prompts(flat, policy))
    for record, raw in zip(records, texts, strict=True):
        prompts = [next(normalized) for _ in raw]
        if kind == "sound" and not record.captions:
            prompts = [pseudo_sentence(record.tags)] if record.tags else []
            raw = prompts
        speech = find_speech(record.tags, record.captions) if drop_speech else None
        if speech is not None:
            yield refuse(record, "text", "speech", speech)
        elif not raw:
            yield refuse(record, "text", "no_text", "neither tags nor captions")
        elif kept := list(dict.fromkeys(prompt for prompt in prompts if prompt)):
            yield record, kept
        else:
            yield refuse(record, "text", "empty_prompt", " | ".join(raw))


def _raw_texts(
    record: Record, kind: Literal["sound", "music"], music_variants: int, seed: int
) -> list[str]:
    """What the policy applies to; tags have their own form (`pseudo_sentence`)."""
    return music_prompts(record, music_variants, seed) if kind == "music" else record.captions
