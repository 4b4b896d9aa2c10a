"""The text stage on `ROWS` tables: tags and captions in, prompts or a reason out.

Two steps, with the lemmatizer between them.  `collect` works on any table by itself:
pseudo-sentences from tags, the texts that still have to be normalized, and what each speech policy
would drop.  All texts of a plan are then normalized once each, in chunks that depend on the set of
texts alone, and `assign` hands every row its prompts.  Whatever cuts the rows into tables, the
prompts come out the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.prompts import PromptPolicy, normalize_prompts
from common.schema import Record
from pipeline.rows import is_in, plain, refuse_where
from pipeline.text.captions import Kind, TextRules
from pipeline.text.music import music_prompts
from pipeline.text.speech import SpeechPolicy, find_speech, speech_verdicts
from pipeline.text.tags import pseudo_sentence

SPEECH_POLICIES: tuple[SpeechPolicy, ...] = ("word", "term", "wide")
"""Those that drop anything; their places are the bits of the column `speech`."""

COLLECTED = pa.schema(
    [
        ("texts", pa.list_(pa.string())),
        ("tag_prompt", pa.dictionary(pa.int32(), pa.string())),
        ("speech", pa.uint8()),
    ]
)
"""Columns that `collect` adds to `ROWS`."""
TEXTS_PER_CHUNK = 2048
_BETWEEN_TAGS = "\x1f"


def collect(table: pa.Table, kind: Kind, rules: TextRules, columns_told: str = "") -> pa.Table:
    """Add `COLLECTED`, and refuse rows for `speech` or for having `no_text`.

    Args:
        table: `ROWS`.
        kind: `sound`: captions, else tags, become prompts; `music`: variants of all fields.
        columns_told: goes into the detail of rows that have `no_text` (`Catalog.text_columns`).
    """
    n = len(table)
    here = np.asarray(is_in(table))
    has_captions = np.asarray(pc.fill_null(pc.list_value_length(table["captions"]), 0)) > 0
    by_tags = ~has_captions if kind == "sound" else np.zeros(n, bool)

    # Most rows of a tag catalog share their tags with others: each combination is looked at once.
    joined = plain(pc.binary_join(table["tags"], _BETWEEN_TAGS)).dictionary_encode()
    combinations = [text.split(_BETWEEN_TAGS) for text in joined.dictionary.to_pylist()]
    which = np.asarray(joined.indices.fill_null(len(combinations)), np.int64)
    combinations.append([])
    sentences = [pseudo_sentence(tags, rules.tags, rules.ancestors) for tags in combinations]
    spoken = [_speech_bits(tags, rules) for tags in combinations]
    speech = np.array([bits for bits, _ in spoken], np.uint8)[which]
    culprits: dict[int, str] = {}

    texts: list[list[str] | None] = [None] * n
    for i in np.flatnonzero(here & ~by_tags):
        captions = table["captions"][i].as_py() or []
        texts[i] = captions
        if kind == "music":
            record = _record(table, int(i))
            texts[i] = music_prompts(record, rules.music_variants, rules.seed)
        bits, culprit = _speech_bits(captions, rules)
        speech[i] |= bits
        if culprit is not None:
            culprits[int(i)] = culprit
    columns = {
        "texts": pa.array(texts, COLLECTED.field("texts").type),
        "tag_prompt": pa.DictionaryArray.from_arrays(
            pa.array(which.astype(np.int32), mask=~by_tags), pa.array(sentences, pa.string())
        ),
        "speech": pa.array(speech),
    }
    for field in COLLECTED:
        table = table.append_column(field, columns[field.name])

    dropped = here & ((speech & _CHOSEN) > 0)
    told = [spoken[which[i]][1] or culprits.get(int(i), "") for i in np.flatnonzero(dropped)]
    table = refuse_where(table, dropped, "text", "speech", told)
    tagless = by_tags & (np.asarray(pc.fill_null(pc.list_value_length(table["tags"]), 0)) == 0)
    silent = here & (tagless | np.array([text == [] for text in texts], bool))
    told = ["; ".join(filter(None, ("neither tags nor captions", columns_told)))]
    return refuse_where(table, silent, "text", "no_text", told * int(silent.sum()))


def unique_texts(tables: Iterable[pa.Table]) -> list[str]:
    """The texts that rows still in have to have normalized: each once, sorted."""
    found: set[str] = set()
    for table in tables:
        if table["texts"].null_count < len(table):
            flat = pc.list_flatten(table["texts"].filter(is_in(table)))
            found.update(pc.unique(flat).to_pylist())
    return sorted(found)


def text_chunks(texts: Sequence[str]) -> list[list[str]]:
    """Texts cut into the portions that are normalized together."""
    return [list(texts[i : i + TEXTS_PER_CHUNK]) for i in range(0, len(texts), TEXTS_PER_CHUNK)]


def normalize_chunk(policy: PromptPolicy, chunk: Sequence[str]) -> pa.Table:
    """`text` and `prompt` of one portion."""
    prompts = normalize_prompts(chunk, policy)
    return pa.table({"text": pa.array(chunk, pa.string()), "prompt": pa.array(prompts, "str")})


def assign(table: pa.Table, prompts: Mapping[str, str]) -> pa.Table:
    """Put `prompts` (list<string>) in the place of `COLLECTED`; refuse rows without any.

    Args:
        prompts: every text of `unique_texts` and its normalized form.
    """
    n = len(table)
    here = np.asarray(is_in(table))
    written = {
        int(i): list(dict.fromkeys(p for t in table["texts"][i].as_py() if (p := prompts[t])))
        for i in np.flatnonzero(here & np.asarray(pc.is_valid(table["texts"])))
    }
    tag_prompt = plain(table["tag_prompt"])
    has_sentence = np.asarray(pc.fill_null(pc.not_equal(tag_prompt, ""), False)) & here
    counts = has_sentence.astype(np.int64)
    counts[list(written)] = [len(row) for row in written.values()]
    # Values: the pseudo-sentences' own array, then the others; offsets and a take order them.
    others = [text for row in written.values() for text in row]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    order = np.empty(offsets[-1], np.int64)
    order[offsets[:-1][has_sentence]] = np.flatnonzero(has_sentence)
    taken = n
    for i, row in written.items():
        order[offsets[i] : offsets[i] + len(row)] = np.arange(taken, taken + len(row))
        taken += len(row)
    values = pa.concat_arrays([tag_prompt, pa.array(others, pa.string())]).take(pa.array(order))
    lists = pa.ListArray.from_arrays(offsets.astype(np.int32), values)
    empty = here & (counts == 0)
    told = [
        " | ".join(table["texts"][int(i)].as_py() or table["tags"][int(i)].as_py() or [])
        for i in np.flatnonzero(empty)
    ]
    table = table.drop_columns(["texts", "tag_prompt"]).append_column("prompts", lists)
    return refuse_where(table, empty, "text", "empty_prompt", told)


def speech_counts(table: pa.Table) -> dict[str, int]:
    """How many rows each speech policy would drop."""
    bits = np.asarray(table["speech"].fill_null(0))
    return {
        policy: int(((bits >> place) & 1).sum()) for place, policy in enumerate(SPEECH_POLICIES)
    }


def _speech_bits(texts: Sequence[str], rules: TextRules) -> tuple[int, str | None]:
    """Bit per policy (and one for what the rules drop), and the first text that they object to."""
    bits, culprit = 0, None
    for text in texts:
        found = _bits_of(text, rules.speech, rules.speech_terms)
        if culprit is None and found & _CHOSEN:
            culprit = text
        bits |= found
    return bits, culprit


@lru_cache(maxsize=1 << 16)
def _bits_of(text: str, policy: SpeechPolicy, terms: tuple[str, ...]) -> int:
    verdicts = speech_verdicts([text], ())
    bits = sum(1 << i for i, name in enumerate(SPEECH_POLICIES) if verdicts[name])
    return bits | (_CHOSEN if find_speech([text], (), policy, terms) is not None else 0)


_CHOSEN = 1 << len(SPEECH_POLICIES)
"""The bit of the policy in force, with the user's own terms."""


def _record(table: pa.Table, row: int) -> Record:
    values: dict[str, Any] = {name: table[name][row].as_py() for name in _MUSIC_FIELDS}
    return Record(
        **values,
        audio_uri="",
        source="",
        sample_id=table["sample_id"][row].as_py().hex(),
    )


_MUSIC_FIELDS = ("dataset", "native_id", "group_id", "split", "tags", "captions", "title", "artist",
                 "genre", "bpm")  # fmt: skip
