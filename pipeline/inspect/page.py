"""`shards report`: one self-contained page with the content of the shards, to read and to hear.

The size of the page does not grow with the shards: lists are cut to their largest entries, texts to
a few lines, clips to `CLIP_S` seconds, and clips are added only while they fit into `CLIPS_BYTES`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common import page
from common.codec import Codec
from common.schema import MANIFEST
from common.shards import ShardDataset, read_summary
from common.storage import Store
from pipeline.inspect.export import decode_clip, load_shard_codec
from pipeline.inspect.plots import code_shares, stacked
from pipeline.inspect.shards import count_codes, read_columns
from pipeline.inspect.tally import (
    TALLIED,
    by_dataset,
    codebook_usage,
    durations,
    frequent_words,
    smallest_by_hash,
    tally,
    tokens,
)

MAX_BYTES = 8 * 2**20
"""Largest size of a report."""
CLIPS_BYTES = 6 * 2**20
"""Largest size of all clips together; the rest of the page is a few hundred kB at most."""
MAX_CLIPS = 24
CLIP_S = 10.0

_DATASETS = 30
_WORDS = 25
_LICENSES = 15
_PROMPTS_PER_CLIP = 5
_TEXT = 240
"""Number of characters of a text that are shown."""


def build_report(
    store: Store,
    codec_path: str,
    clips: int = 3,
    sample: int | None = None,
    seed: int = 0,
    tell: Callable[[int, int], object] = lambda done, of: None,
) -> tuple[str, list[str]]:
    """Make the page of a finished run; the same shards and arguments give the same page.

    Args:
        clips: number of decoded clips per dataset, drawn by `seed`; fewer if `MAX_CLIPS` or
            `CLIPS_BYTES` is reached.
        sample: count the codes of this many shards; None: of all.
        tell: called with the number of shards whose codes were read, and of all that are to be.

    Returns:
        The HTML, at most `MAX_BYTES`, and the ids of the clips in it.

    Raises:
        AttuneError: the run is not finished or damaged, or the shards have another codec.
    """
    summary = read_summary(store)
    codec = load_shard_codec(store, codec_path, summary) if clips else None
    manifest = read_columns(store, TALLIED)
    datasets, whole = by_dataset(manifest), tally(manifest)
    tallies = {name: tally(rows) for name, rows in datasets.items()}
    prompts = pc.list_flatten(manifest["prompts"]).to_pylist()
    codes = count_codes(store, summary, sample, seed, tell)
    size = summary["codebook_size"]
    empty = np.zeros((summary["n_codebooks"], size), np.int64)
    counts = sum(codes.counts.values(), start=empty)
    refusals = count_refusals(store)
    by_hours = sorted(tallies, key=lambda name: (-tallies[name]["hours"], name))
    cards: list[dict[str, Any]] = []
    if codec is not None:
        cards = _cards(store, codec, draw_clips(store, by_hours, clips, seed))
    heard = {card["dataset"] for card in cards}
    series = dict(_series(datasets, by_hours))
    seconds = {name: durations(rows) for name, rows in series.items()}
    lengths = {name: tokens(rows) for name, rows in series.items()}
    hours = {name: tallies[name]["hours"] for name in by_hours}
    licenses = {name: row["hours"] for name, row in whole["licenses"].items()}
    html = page.render(
        __package__,
        "page.html",
        uri=store.uri,
        summary=summary,
        seed=seed,
        totals={
            "clips": f"{whole['clips']:,}",
            "hours": f"{whole['hours']:,.2f}",
            "datasets": f"{len(tallies):,}",
            "prompts": f"{whole['prompts']:,}",
            "different prompts": f"{whole['unique_prompts']:,}",
            "shards": f"{summary['n_shards']:,}",
            "copies within a split": f"{summary.get('n_duplicates', 0):,}",
            "rows refused": f"{sum(reasons.total() for reasons in refusals.values()):,}",
        },
        datasets=[(_cut(name, 60), tallies[name]) for name in by_hours[:_DATASETS]],
        unlisted=len(by_hours[_DATASETS:]),
        hours=_largest(hours, _LICENSES),
        licenses=_largest(licenses, _LICENSES),
        series=[_cut(name, 60) for name in series],
        durations=page.picture(stacked(seconds, "duration of a clip, seconds", "clips")),
        tokens=page.picture(stacked(lengths, "length of a prompt, tokens", "prompts")),
        words=frequent_words(prompts, _WORDS),
        codes=codes,
        codebooks={
            "plot": page.picture(code_shares(counts[: len(page.COLOURS)])),
            "rows": [
                (f"codebook {k}", used["used"], used["used"] / size * 100, used["perplexity"])
                for k, used in enumerate(codebook_usage(counts))
            ],
        },
        refusals=[
            (stage, reasons.total(), _largest(reasons, _LICENSES))
            for stage, reasons in sorted(refusals.items())
        ],
        cards=[
            (_cut(name, 60), [card for card in cards if card["dataset"] == name])
            for name in by_hours
            if name in heard
        ],
        silent=len(by_hours) - len(heard),
        clip_s=CLIP_S,
        megabytes=MAX_BYTES // 2**20,
    )
    return html, [card["sample_id"] for card in cards]


def count_refusals(store: Store) -> dict[str, Counter[str]]:
    """{stage: number of refused rows by reason}, of planning and encoding."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for key in ("plan/rejects.parquet", "quarantine.parquet"):
        rows = read_columns(store, ("stage", "reason"), key)
        for stage, reason in zip(*(rows[c].to_pylist() for c in ("stage", "reason")), strict=True):
            found[stage][reason] += 1
    return found


def draw_clips(store: Store, datasets: Sequence[str], per_dataset: int, seed: int) -> pa.Table:
    """Manifest rows of a few clips of each dataset, at most `MAX_CLIPS`.

    Every dataset gets its first clip before any dataset gets its second one.
    """
    manifest = read_columns(store, MANIFEST.names)
    drawn: dict[str, list[str]] = {}
    for name in datasets:
        rows = manifest.filter(pc.equal(manifest["dataset"], name))
        drawn[name] = smallest_by_hash(rows["sample_id"].to_pylist(), per_dataset, seed)
    turns = [drawn[name][turn : turn + 1] for turn in range(per_dataset) for name in datasets]
    chosen = list(chain.from_iterable(turns))[:MAX_CLIPS]
    ids = manifest["sample_id"].combine_chunks()
    return manifest.take(pc.index_in(pa.array(chosen, pa.string()), ids))


def _cards(store: Store, codec: Codec, rows: pa.Table) -> list[dict[str, Any]]:
    """The first of the drawn clips, as many as fit."""
    reader = ShardDataset(store, rows, {})
    cards: list[dict[str, Any]] = []
    room = CLIPS_BYTES
    for i, row in enumerate(rows.to_pylist()):
        card = _card(codec, reader.read(i).codes, row)
        room -= len(
            repr(card).encode()
        )  # picture, sound and texts; the HTML around them adds little
        if room < 0:
            break
        cards.append(card)
    return cards


def _card(codec: Codec, codes: NDArray[np.int16], row: Mapping[str, Any]) -> dict[str, Any]:
    """A clip with its prompts and facts, from its codes (int16 `[K, T]`) and its manifest row."""
    seconds = min(row["duration_s"], CLIP_S)
    wave = decode_clip(codec, codes[:, : int(np.ceil(seconds * codec.frame_rate))], seconds)
    length = f"{row['duration_s']:.1f} s"
    if seconds < row["duration_s"]:
        length = f"first {seconds:g} s of {length}"
    facts = [length, row["split"], row["native_id"], row["license"] or row["license_url"]]
    facts += [row["attribution"], f"sample {row['sample_id'][:12]}"]
    prompts = row["prompts"][:_PROMPTS_PER_CLIP]
    return {
        "sample_id": row["sample_id"],
        "dataset": row["dataset"],
        "clip": page.clip(wave, codec.sample_rate),
        "prompts": [_cut(prompt) for prompt in prompts],
        "more": len(row["prompts"]) - len(prompts),
        "facts": [_cut(fact) for fact in facts if fact],
    }


def _series(
    datasets: Mapping[str, pa.Table], by_hours: Sequence[str]
) -> Iterable[tuple[str, pa.Table]]:
    """Rows of the datasets that get their own colour, and of all others together."""
    own = len(page.COLOURS) if len(by_hours) <= len(page.COLOURS) else len(page.COLOURS) - 1
    yield from ((name, datasets[name]) for name in by_hours[:own])
    if rest := by_hours[own:]:
        yield f"{len(rest)} others", pa.concat_tables(datasets[name] for name in rest)


def _largest(rows: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The largest entries with shortened labels, and the sum of all others."""
    ranked = sorted(rows.items(), key=lambda item: (-item[1], item[0]))
    largest: dict[str, Any] = {}
    for name, value in ranked[:number]:
        short = _cut(name, 80)
        largest[short] = largest.get(short, 0) + value
    if rest := ranked[number:]:
        largest[f"{len(rest)} others"] = sum(value for _, value in rest)
    return largest


def _cut(text: str, length: int = _TEXT) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
