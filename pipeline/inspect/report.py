"""`shards report`: what is in the shards, to read and to hear, as one self-contained page.

Its size does not grow with the shards: lists are cut to their largest entries, texts to a few
lines, clips to `CLIP_S` seconds, and clips are added only while they fit into `CLIPS_BYTES`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
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
from pipeline.inspect.plots import FLOOR_DB, code_shares, spectrogram_plot, stacked
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
    sections = [
        _totals(summary, Tally(manifest), len(tallies), refusals),
        _datasets(tallies, by_hours),
        _lengths(tallies, by_hours),
        _words(frequent_words(prompts, _WORDS)),
        _codes(codes, summary, seed),
        _refusals(refusals),
    ]
    shown: list[str] = []
    if codec is not None:
        rows = draw_clips(store, by_hours, clips, seed)
        html, shown = _clips(store, codec, rows, by_hours, seed)
        sections.append(html)
    lead = (
        f"{store.uri}, plan {summary['plan_hash'][:12]}. Codec {summary['codec_id']}: "
        f"{summary['n_codebooks']} codebooks of {summary['codebook_size']} codes at "
        f"{summary['frame_rate']:g} frames/s, {summary['sample_rate']} Hz. Text encoder "
        f"{summary['text_encoder_id']}: {summary['text_dim']} dimensions."
    )
    footer = (
        f"One file without scripts or requests, at most {MAX_BYTES // 2**20} MB however large the "
        f"shards are: lists are cut to their largest entries, clips to {CLIP_S:g} s."
    )
    return page.page(f"Shards: {summary['name']}", lead, sections, footer), shown


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


def _totals(
    summary: Mapping[str, Any],
    whole: Tally,
    n_datasets: int,
    refusals: Counter[tuple[str, str]],
) -> str:
    return page.key_figures(
        {
            "clips": f"{whole.clips:,}",
            "hours": f"{whole.durations.total / 3600:,.2f}",
            "datasets": f"{n_datasets:,}",
            "prompts": f"{whole.prompts:,}",
            "different prompts": f"{whole.unique:,}",
            "shards": f"{summary['n_shards']:,}",
            "rows refused": f"{refusals.total():,}",
        }
    )


def _datasets(tallies: Mapping[str, Tally], by_hours: Sequence[str]) -> str:
    rows = []
    for name in by_hours[:_DATASETS]:
        tally = tallies[name]
        splits = ", ".join(f"{split} {number:,}" for split, number in sorted(tally.splits.items()))
        rows.append(
            (
                page.Html(f"<bdi>{escape(_cut(name, 60))}</bdi>"),
                tally.clips,
                tally.durations.total / 3600,
                tally.prompts,
                tally.unique,
                tally.durations.quantile(0.5),
                page.Html(f'<span class="whole">{escape(splits)}</span>'),
            )
        )
    header = ("dataset", "clips", "hours", "prompts", "different", "median s", "splits")
    hours = {name: tallies[name].durations.total / 3600 for name in by_hours}
    licenses: defaultdict[str, float] = defaultdict(float)
    for tally in tallies.values():
        for name, seconds in tally.license_seconds.items():
            licenses[name] += seconds / 3600
    more = len(by_hours) - _DATASETS
    return page.section(
        "Datasets",
        page.table(header, rows),
        page.paragraph(f"{more} smaller datasets are not listed.") if more > 0 else "",
        '<div class="plots">',
        _panel("Hours by dataset", page.bars(_largest(hours, _LICENSES), "h")),
        _panel("Hours by licence", page.bars(_largest(licenses, _LICENSES), "h")),
        "</div>",
    )


def _lengths(tallies: Mapping[str, Tally], by_hours: Sequence[str]) -> str:
    parts = dict(_series(tallies, by_hours))
    durations = {name: tally.durations for name, tally in parts.items()}
    tokens = {name: tally.tokens for name, tally in parts.items()}
    return page.section(
        "Durations and prompts",
        page.legend([_cut(name, 60) for name in parts]),
        '<div class="plots">',
        _panel(
            "Durations",
            page.figure(stacked(durations, "duration of a clip, seconds", "clips"), "histogram"),
        ),
        _panel(
            "Prompt lengths",
            page.figure(stacked(tokens, "length of a prompt, tokens", "prompts"), "histogram"),
        ),
        "</div>",
    )


def _words(words: Mapping[str, int]) -> str:
    return page.section(
        "Words",
        page.paragraph(
            f"The {_WORDS} most frequent words of all prompts, and how often each comes."
        ),
        page.bars(words),
    )


def _codes(codes: CodeCounts, summary: Mapping[str, Any], seed: int) -> str:
    shape = (int(summary["n_codebooks"]), int(summary["codebook_size"]))
    counts = sum(codes.counts.values(), start=np.zeros(shape, np.int64))
    drawn = f" (drawn by seed {seed})" if codes.shards < codes.of_shards else ""
    rows = [
        (f"codebook {stream}", usage["used"], usage["used"] / shape[1] * 100, usage["perplexity"])
        for stream, usage in enumerate(codebook_usage(counts))
    ]
    return page.section(
        "Codebooks",
        page.paragraph(
            f"From {codes.clips:,} clips in {codes.shards:,} of {codes.of_shards:,} shards{drawn}. "
            f"A codebook whose {shape[1]} codes all come equally often has perplexity {shape[1]}; "
            "a steep curve, or one that ends early, is one that audio hardly uses."
        ),
        '<div class="plots">',
        _panel(
            "How often each code comes",
            page.legend([f"codebook {stream}" for stream in range(min(shape[0], 6))])
            + page.figure(code_shares(counts[:6]), "share of frames by rank of the code"),
        ),
        page.table(("", "codes used", "used, %", "perplexity"), rows),
        "</div>",
    )


def _refusals(refusals: Counter[tuple[str, str]]) -> str:
    if not refusals:
        return page.section("Refusals", page.paragraph("No row was refused."))
    panels = []
    for stage in sorted({stage for stage, _ in refusals}):
        reasons = Counter({r: n for (s, r), n in refusals.items() if s == stage})
        title = f"Stage {stage}: {reasons.total():,} rows"
        panels.append(_panel(title, page.bars(_largest(reasons, _LICENSES))))
    return page.section(
        "Refusals",
        page.paragraph("Rows that did not become clips. pipeline/README.md says what each means."),
        f'<div class="plots">{"".join(panels)}</div>',
    )


def _clips(
    store: Store, codec: Codec, rows: pa.Table, datasets: Sequence[str], seed: int
) -> tuple[str, list[str]]:
    """The section, and the ids of the clips in it."""
    reader = ShardDataset(store, rows, {})
    cards: dict[str, list[str]] = {}
    shown: list[str] = []
    room = CLIPS_BYTES
    for i, row in enumerate(rows.to_pylist()):
        card = clip_card(codec, reader.read(i).codes, row)
        if len(card.encode()) > room:
            break
        room -= len(card.encode())
        cards.setdefault(row["dataset"], []).append(card)
        shown.append(row["sample_id"])
    silent = [name for name in datasets if name not in cards]
    parts = [
        f"<h3><bdi>{escape(_cut(name, 60))}</bdi></h3>"
        f'<div class="clips">{"".join(cards[name])}</div>'
        for name in datasets
        if name in cards
    ]
    return page.section(
        "Clips",
        page.paragraph(
            f"Decoded from their codes: what a model learns to make. Drawn by seed {seed}, at most "
            f"{CLIP_S:g} s each. Spectrograms run from {FLOOR_DB:g} dB below the loudest point "
            "(dark) up to it (bright)."
        ),
        page.paragraph(f"{len(silent)} smaller datasets are not heard.") if silent else "",
        *parts,
    ), shown


def clip_card(codec: Codec, codes: NDArray[np.int16], row: Mapping[str, Any]) -> str:
    """Spectrogram, player and prompts of one clip.

    Args:
        codes: int16 [K, T].
        row: its manifest row.
    """
    heard = min(row["duration_s"], CLIP_S)
    frames = int(np.ceil(heard * codec.frame_rate))
    wave = decode_clip(codec, codes[:, :frames], heard)
    prompts = [f"<li><bdi>{escape(_cut(p))}</bdi></li>" for p in row["prompts"][:_PROMPTS_PER_CLIP]]
    if more := len(row["prompts"]) - len(prompts):
        prompts.append(f"<li>and {more} more</li>")
    length = f"{row['duration_s']:.1f} s"
    if heard < row["duration_s"]:
        length = f"first {heard:g} s of {length}"
    facts = [length, row["split"], row["native_id"], row["license"] or row["license_url"]]
    facts += [row["attribution"], f"sample {row['sample_id'][:12]}"]
    small = ", ".join(f"<bdi>{escape(_cut(fact))}</bdi>" for fact in facts if fact)
    alternative = f"spectrogram, 0 to {heard:.1f} s, 0 to {codec.sample_rate / 2000:g} kHz"
    return (
        f'<div class="card">{page.figure(spectrogram_plot(wave, codec.sample_rate), alternative)}'
        f"{page.player(wave, codec.sample_rate)}<ul>{''.join(prompts)}</ul>"
        f"<small>{small}</small></div>"
    )


def _series(tallies: Mapping[str, Tally], by_hours: Sequence[str]) -> Iterable[tuple[str, Tally]]:
    """The datasets with colours of their own, and what all others are together."""
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


def _panel(title: str, html: str) -> str:
    return f"<div><h3>{escape(title)}</h3>{html}</div>"


def _cut(text: str, length: int = _TEXT) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
