"""`shards report`: what is in the shards, to read and to hear, as one self-contained page.

Its size does not grow with the shards: lists are cut to their largest entries, texts to a few
lines, clips to `CLIP_S` seconds, and clips are added only while they fit into `CLIPS_BYTES`.
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
from pipeline.inspect.shards import CodeCounts, count_codes, read_columns
from pipeline.inspect.tally import (
    TALLIED,
    Tally,
    by_dataset,
    codebook_usage,
    frequent_words,
    smallest_by_hash,
)

MAX_BYTES = 8 * 2**20
"""No report is larger."""
CLIPS_BYTES = 6 * 2**20
"""Of which clips take no more than this; all else is a few hundred kB at most."""
MAX_CLIPS = 24
CLIP_S = 10.0

_DATASETS = 30
_WORDS = 25
_LICENSES = 15
_PROMPTS_PER_CLIP = 5
_TEXT = 240
"""Characters of a text that are shown."""


def build_report(
    store: Store,
    codec_path: str,
    clips: int = 3,
    sample: int | None = None,
    seed: int = 0,
    tell: Callable[[int, int], object] | None = None,
) -> tuple[str, list[str]]:
    """The page of a finished run.

    Args:
        clips: decoded clips per dataset, drawn by `seed`; fewer where `MAX_CLIPS` or
            `CLIPS_BYTES` end it.
        sample: count the codes of this many shards; None: of all.
        tell: called with the number of shards whose codes were read, and of all.

    Returns:
        The HTML, at most `MAX_BYTES` of it, and the ids of the clips in it.  The same shards and
        arguments give the same page.

    Raises:
        AttuneError: the run is not finished or damaged, or the codec is not that of the shards.
    """
    summary = read_summary(store)
    codec = load_shard_codec(store, codec_path, summary) if clips else None
    manifest = read_columns(store, TALLIED)
    tallies = by_dataset(manifest)
    prompts = pc.list_flatten(manifest["prompts"]).to_pylist()
    codes = count_codes(store, summary, sample, seed, tell)
    refusals = count_refusals(store)
    by_hours = sorted(tallies, key=lambda name: (-tallies[name].durations.total, name))
    cards: list[dict[str, Any]] = []
    if codec is not None:
        cards = _cards(store, codec, draw_clips(store, by_hours, clips, seed))
    heard = {card["dataset"] for card in cards}
    series = dict(_series(tallies, by_hours))
    durations = {name: tally.durations for name, tally in series.items()}
    tokens = {name: tally.tokens for name, tally in series.items()}
    hours = {name: tallies[name].durations.total / 3600 for name in by_hours}
    html = page.render(
        __package__,
        "page.html",
        uri=store.uri,
        summary=summary,
        seed=seed,
        totals=_totals(Tally(manifest), len(tallies), summary["n_shards"], refusals.total()),
        datasets=[(_cut(name, 60), tallies[name]) for name in by_hours[:_DATASETS]],
        unlisted=len(by_hours[_DATASETS:]),
        hours=_largest(hours, _LICENSES),
        licenses=_largest(_license_hours(tallies), _LICENSES),
        series=[_cut(name, 60) for name in series],
        durations=page.picture(stacked(durations, "duration of a clip, seconds", "clips")),
        tokens=page.picture(stacked(tokens, "length of a prompt, tokens", "prompts")),
        words=frequent_words(prompts, _WORDS),
        codes=codes,
        codebooks=_codebooks(codes, summary["n_codebooks"], summary["codebook_size"]),
        refusals=[
            (stage, reasons.total(), _largest(reasons, _LICENSES))
            for stage, reasons in _stages(refusals).items()
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


def count_refusals(store: Store) -> Counter[tuple[str, str]]:
    """How many clips were refused, by (stage, reason): while planning, and while encoding."""
    found: Counter[tuple[str, str]] = Counter()
    for key in ("plan/rejects.parquet", "quarantine.parquet"):
        rows = read_columns(store, ("stage", "reason"), key)
        found.update(zip(rows["stage"].to_pylist(), rows["reason"].to_pylist(), strict=True))
    return found


def draw_clips(store: Store, datasets: Sequence[str], per_dataset: int, seed: int) -> pa.Table:
    """Manifest rows of a few clips of each dataset, at most `MAX_CLIPS`, ordered by the draw.

    Where there are more datasets than clips, the first ones are heard.
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


def _totals(whole: Tally, n_datasets: int, n_shards: int, refused: int) -> dict[str, str]:
    return {
        "clips": f"{whole.clips:,}",
        "hours": f"{whole.durations.total / 3600:,.2f}",
        "datasets": f"{n_datasets:,}",
        "prompts": f"{whole.prompts:,}",
        "different prompts": f"{whole.unique:,}",
        "shards": f"{n_shards:,}",
        "rows refused": f"{refused:,}",
    }


def _license_hours(tallies: Mapping[str, Tally]) -> dict[str, float]:
    hours: defaultdict[str, float] = defaultdict(float)
    for tally in tallies.values():
        for name, seconds in tally.license_seconds.items():
            hours[name] += seconds / 3600
    return hours


def _codebooks(codes: CodeCounts, n_codebooks: int, codebook_size: int) -> dict[str, Any]:
    """The plot of how often each code comes, and rows of the table."""
    shape = (n_codebooks, codebook_size)
    counts = sum(codes.counts.values(), start=np.zeros(shape, np.int64))
    rows = [
        (f"codebook {k}", usage["used"], usage["used"] / codebook_size * 100, usage["perplexity"])
        for k, usage in enumerate(codebook_usage(counts))
    ]
    return {"plot": page.picture(code_shares(counts[: len(page.COLOURS)])), "rows": rows}


def _stages(refusals: Counter[tuple[str, str]]) -> dict[str, Counter[str]]:
    """{stage: how many rows were refused, by reason}."""
    stages: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for (stage, reason), number in sorted(refusals.items()):
        stages[stage][reason] += number
    return stages


def _cards(store: Store, codec: Codec, rows: pa.Table) -> list[dict[str, Any]]:
    """The first of the drawn clips, as many as fit."""
    reader = ShardDataset(store, rows, {})
    cards: list[dict[str, Any]] = []
    room = CLIPS_BYTES
    for i, row in enumerate(rows.to_pylist()):
        card = clip_card(codec, reader.read(i).codes, row)
        room -= len(repr(card).encode())  # picture, sound and texts; their HTML adds little
        if room < 0:
            break
        cards.append(card)
    return cards


def clip_card(codec: Codec, codes: NDArray[np.int16], row: Mapping[str, Any]) -> dict[str, Any]:
    """A clip, its prompts and facts.

    Args:
        codes: int16 `[K, T]`.
        row: its manifest row.
    """
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


def _series(tallies: Mapping[str, Tally], by_hours: Sequence[str]) -> Iterable[tuple[str, Tally]]:
    """The datasets with colours of their own, and all others as one."""
    own = len(page.COLOURS) if len(by_hours) <= len(page.COLOURS) else len(page.COLOURS) - 1
    yield from ((name, tallies[name]) for name in by_hours[:own])
    if rest := by_hours[own:]:
        yield f"{len(rest)} others", Tally(pa.concat_tables(tallies[name].rows for name in rest))


def _largest(rows: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The largest entries with short labels, and the sum of all others."""
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
