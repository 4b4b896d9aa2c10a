"""The text stage on `ROWS` tables: from tags and captions to prompts or a reason for refusal.

There are two steps, and the lemmatizer runs between them.  `collect` works on each table
independently: it makes pseudo-sentences from tags, lists the texts that must be normalized, and
notes which speech policies would refuse the row.  Then each different text of a plan is normalized
once, in chunks that depend only on the set of texts, and `assign` gives every row its prompts.  So
the prompts do not depend on how the rows are cut into tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.prompts import PromptForm, normalize_prompts
from pipeline.rows import is_in, plain, refuse_where
from pipeline.text.captions import Kind, TextRules, empty_detail
from pipeline.text.music import music_prompts
from pipeline.text.speech import SpeechPolicy, find_speech
from pipeline.text.tags import chosen_tags, pseudo_sentence

SPEECH_POLICIES: tuple[SpeechPolicy, ...] = ("word", "term", "wide")
"""The policies that refuse anything; policy i is bit i of the column `speech`."""

COLLECTED = pa.schema(
    [
        ("texts", pa.list_(pa.string())),
        ("tag_texts", pa.dictionary(pa.int32(), pa.string())),
        ("speech", pa.uint8()),
    ]
)
"""Columns that `collect` adds to `ROWS`.  `tag_texts` has the chosen tags of a row whose prompt is
made of tags, with `_BETWEEN_TAGS` between them."""
TEXTS_PER_CHUNK = 2048
_BETWEEN_TAGS = "\x1f"


def collect(table: pa.Table, kind: Kind, rules: TextRules, columns_read: str = "") -> pa.Table:
    """Add `COLLECTED`, and refuse rows for `speech` or for having `no_text`.

    Args:
        table: `ROWS`.
        kind: `sound`: captions, else tags, become prompts; `music`: variants of all fields.
        columns_read: added to the detail of rows that have `no_text` (`Catalog.text_columns`).
    """
    n = len(table)
    here = np.asarray(is_in(table))
    has_captions = np.asarray(pc.fill_null(pc.list_value_length(table["captions"]), 0)) > 0
    by_tags = ~has_captions if kind == "sound" else np.zeros(n, bool)

    # Most rows of a tag catalog have the same tags as others: each combination is done only once.
    joined = plain(pc.binary_join(table["tags"], _BETWEEN_TAGS)).dictionary_encode()
    combinations = [text.split(_BETWEEN_TAGS) for text in joined.dictionary.to_pylist()]
    which = np.asarray(joined.indices.fill_null(len(combinations)), np.int64)
    combinations.append([])
    chosen = [chosen_tags(tags, rules.tags, rules.ancestors) for tags in combinations]
    tag_texts = [_BETWEEN_TAGS.join(tags) for tags in chosen]
    bits_of = {
        tag: _bits_of(tag, rules.speech, rules.speech_terms)
        for tag in set(chain.from_iterable(combinations))
    }
    spoken = [_together(tags, bits_of) for tags in combinations]
    speech = np.array([bits for bits, _ in spoken], np.uint8)[which]
    culprits: dict[int, str] = {}

    texts: list[list[str] | None] = [None] * n
    for i in np.flatnonzero(here & ~by_tags):
        captions = table["captions"][i].as_py() or []
        texts[i] = captions
        if kind == "music":
            track = {name: table[name][i].as_py() for name in ("captions", "tags", "genre", "bpm")}
            track["sample_id"] = table["sample_id"][i].as_py().hex()
            texts[i] = music_prompts(track, rules.music_variants, rules.seed)
        found = {text: _bits_of(text, rules.speech, rules.speech_terms) for text in captions}
        bits, culprit = _together(captions, found)
        speech[i] |= bits
        if culprit is not None:
            culprits[int(i)] = culprit
    columns = {
        "texts": pa.array(texts, COLLECTED.field("texts").type),
        "tag_texts": pa.DictionaryArray.from_arrays(
            pa.array(which.astype(np.int32), mask=~by_tags), pa.array(tag_texts, pa.string())
        ),
        "speech": pa.array(speech),
    }
    for field in COLLECTED:
        table = table.append_column(field, columns[field.name])

    dropped = here & ((speech & _CHOSEN) > 0)
    details = [spoken[which[i]][1] or culprits.get(int(i), "") for i in np.flatnonzero(dropped)]
    table = refuse_where(table, dropped, "text", "speech", details)
    tagless = by_tags & (np.asarray(pc.fill_null(pc.list_value_length(table["tags"]), 0)) == 0)
    textless = here & (tagless | np.array([text == [] for text in texts], bool))
    detail = "; ".join(filter(None, ("neither tags nor captions", columns_read)))
    return refuse_where(table, textless, "text", "no_text", [detail] * int(textless.sum()))


def unique_texts(tables: Iterable[pa.Table], rules: TextRules) -> list[str]:
    """The different texts of accepted rows that must be normalized, sorted."""
    found: set[str] = set()
    for table in tables:
        here = is_in(table)
        if table["texts"].null_count < len(table):
            flat = pc.list_flatten(table["texts"].filter(here))
            found.update(pc.unique(flat).to_pylist())
        if rules.tag_form == "policy":
            for tags in pc.unique(plain(table["tag_texts"].filter(here)).drop_null()).to_pylist():
                found.update(filter(None, tags.split(_BETWEEN_TAGS)))
    return sorted(found)


def normalize_chunk(form: PromptForm, chunk: Sequence[str]) -> Iterator[pa.Table]:
    """One table with `text` and `prompt`."""
    prompts = normalize_prompts(chunk, form)
    yield pa.table({"text": pa.array(chunk, pa.string()), "prompt": pa.array(prompts, "str")})


def assign(table: pa.Table, prompts: Mapping[str, str], rules: TextRules) -> pa.Table:
    """Replace the columns `COLLECTED` by `prompts` (list<string>); refuse rows without prompts.

    Args:
        prompts: the normalized form of every text in `unique_texts`.
    """
    here = np.asarray(is_in(table))
    written = {
        int(i): list(dict.fromkeys(p for t in table["texts"][i].as_py() if (p := prompts[t])))
        for i in np.flatnonzero(here & np.asarray(pc.is_valid(table["texts"])))
    }
    tag_prompt = plain(_tag_prompts(table["tag_texts"], prompts, rules))
    has_sentence = np.asarray(pc.fill_null(pc.not_equal(tag_prompt, ""), False)) & here
    counts = has_sentence.astype(np.int64)
    counts[list(written)] = [len(row) for row in written.values()]
    # The values are all pseudo-sentences, then all other prompts; `order` puts them into the order
    # of the rows.
    others = [text for row in written.values() for text in row]
    is_sentence = np.repeat(has_sentence, counts)
    order = np.empty(len(is_sentence), np.int64)
    order[is_sentence] = np.flatnonzero(has_sentence)
    order[~is_sentence] = len(table) + np.arange(len(others))
    values = pa.concat_arrays([tag_prompt, pa.array(others, pa.string())]).take(pa.array(order))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    lists = pa.ListArray.from_arrays(offsets, values)
    empty = here & (counts == 0)
    details = [
        empty_detail(table["texts"][int(i)].as_py() or table["tags"][int(i)].as_py() or [], rules)
        for i in np.flatnonzero(empty)
    ]
    table = table.drop_columns(["texts", "tag_texts"]).append_column("prompts", lists)
    return refuse_where(table, empty, "text", "empty_prompt", details)


def _tag_prompts(
    tag_texts: pa.ChunkedArray, prompts: Mapping[str, str], rules: TextRules
) -> pa.DictionaryArray:
    """The prompt of each row that is made of tags, null for other rows."""
    column = plain(tag_texts).dictionary_encode()
    sentences = []
    for joined in column.dictionary.to_pylist():
        tags = joined.split(_BETWEEN_TAGS)
        if rules.tag_form == "policy":
            tags = [prompts.get(tag, "") for tag in tags]
        sentences.append(pseudo_sentence(tags, rules.tags))
    return pa.DictionaryArray.from_arrays(column.indices, pa.array(sentences, pa.string()))


def speech_counts(table: pa.Table) -> dict[str, int]:
    """Number of rows that each speech policy would refuse."""
    bits = np.asarray(table["speech"].fill_null(0))
    return {policy: int(((bits >> i) & 1).sum()) for i, policy in enumerate(SPEECH_POLICIES)}


def _together(texts: Sequence[str], bits_of: Mapping[str, int]) -> tuple[int, str | None]:
    """The bits of all texts (see `_bits_of`), and the first text that the rules refuse."""
    bits, culprit = 0, None
    for text in texts:
        if found := bits_of[text]:
            bits |= found
            if culprit is None and found & _CHOSEN:
                culprit = text
    return bits, culprit


@lru_cache(maxsize=1 << 16)
def _bits_of(text: str, policy: SpeechPolicy, terms: tuple[str, ...]) -> int:
    """A bit per policy of `SPEECH_POLICIES`, and `_CHOSEN` for the rules' policy and terms."""
    rules = [*((name, ()) for name in SPEECH_POLICIES), (policy, terms)]
    return sum(
        1 << i for i, (name, own) in enumerate(rules) if find_speech([text], name, own) is not None
    )


_CHOSEN = 1 << len(SPEECH_POLICIES)
