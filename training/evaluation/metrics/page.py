"""The page of `evaluate`: figures with intervals, comparison, worst clips to hear, metric card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.audio import AudioError, resample
from training.evaluation import page
from training.evaluation.clip_sets import SetClip, load_clip
from training.evaluation.metrics.measure import HIGHER_IS_BETTER, Measured

WORST = 20
"""Clips shown with player and spectrogram."""
LISTED = 500
"""Rows of the table of all clips; `metrics.json` has every one."""
_RATE = 32_000
"""Hz of the page's sounds at most."""
NAMES = {
    "fad_vggish": "FAD, VGGish",
    "fad_codec": "FAD, the codec's own latents",
    "fd_mel": "Fréchet distance of mel statistics",
    "kl_passt_10s": "KL, PaSST 10 s (real to generated)",
    "kl_passt_10s_reverse": "KL, PaSST 10 s (generated to real)",
    "kl_passt_10s_both": "KL, PaSST 10 s, both added",
    "kl_passt_20s": "KL, PaSST 20 s (real to generated)",
    "kl_passt_20s_reverse": "KL, PaSST 20 s (generated to real)",
    "kl_passt_20s_both": "KL, PaSST 20 s, both added",
    "clap": "CLAP score",
}


def write_page(
    path: Path,
    document: dict[str, Any],
    measured: Measured,
    pairs: dict[str, SetClip],
    loudness: float | None,
) -> None:
    """Write the page from the content of `metrics.json`.

    Args:
        measured: the target's clips.
        pairs: {name: the real clip}, heard beside a worst one.
        loudness: of players, as measured.
    """
    sections = [_figures(document), _left_out(document)]
    if "comparison" in document:
        sections.append(_comparison(document["comparison"]))
    sections += [
        _worst(document, measured, pairs, loudness), _all(document), _cards(document),
    ]  # fmt: skip
    card = document["card"]
    path.write_text(
        page.page(
            f"Attune: {Path(document['target']).name} measured",
            f"{document['clips']} clips of {document['target']} against "
            f"{document['reference_clips']} real ones ({document['reference']}).",
            [section for section in sections if section],
            f"Made {card['date']} by `python -m training evaluate`. Players hold MP3 copies.",
        )
    )


def _number(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}g}"


def _interval(row: dict[str, Any]) -> str:
    if row["low"] is None:
        return "too few clips"
    return f"[{_number(row['low'])}, {_number(row['high'])}]"


def _count(row: dict[str, Any]) -> str:
    clips, clusters = row["clips"], row["clusters"]
    return f"{clips}" if clusters == clips else f"{clips} in {clusters} clusters"


def _infinity(row: dict[str, Any]) -> str:
    found = row.get("infinity")
    return "" if found is None else f"{_number(found['value'])} (r² {found['r2']:.2f})"


def _figures(document: dict[str, Any]) -> str:
    rows = []
    for metric, row in document["metrics"].items():
        thin = row.get("embeddings", 1e9) <= row.get("dimensions", 0)
        rows.append(
            (
                NAMES.get(metric, metric),
                _number(row["value"]),
                _interval(row),
                _count(row),
                "higher" if metric in HIGHER_IS_BETTER else "lower",
                _infinity(row),
                "fewer embeddings than dimensions: compare only at this N" if thin else "",
            )
        )
    header = ("metric", "value", "95% interval", "N", "better", "at infinite N", "note")
    return page.section(
        "Figures",
        page.table(header, rows),
        page.paragraph(
            "Intervals are bootstrapped over the generated clips; the real ones stay. Clips that "
            "answer to one real clip (of one prompt, where no real clip is known) are a cluster: "
            "drawn together, as they are hard or easy together. KL takes both clips at the "
            "generated one's rate, if that is lower. A "
            "Fréchet distance is larger with fewer clips: compare it at the same N, or at infinite "
            "N, which a line through random subsets over 1/N gives (r² near 1 where it holds)."
        ),
    )


def _left_out(document: dict[str, Any]) -> str:
    reasons: dict[str, list[str]] = {}
    for metric, why in document["missing"].items():
        reasons.setdefault(why, []).append(NAMES.get(metric, metric))
    rows = [(", ".join(metrics), why) for why, metrics in reasons.items()]
    rows += [
        (name, f"{kind}: {why}")
        for kind, found in document["unusable"].items()
        for name, why in found.items()
    ]
    if lacking := document["card"]["reference_missing"]:
        rows.append((f"{len(lacking)} clips of the list", "no audio: " + ", ".join(lacking)))
    return page.section("Left out", page.table(("what", "why"), rows)) if rows else ""


def _comparison(comparison: dict[str, Any]) -> str:
    rows = []
    for metric, row in comparison["differences"].items():
        verdict = f"{row['better']} is better" if row["more_than_noise"] else "no more than noise"
        rows.append(
            (
                NAMES.get(metric, metric),
                f"{row['value']:+.4g}",
                _interval(row),
                f"{row['p_value']:.2g}",
                verdict,
            )
        )
    return page.section(
        "Compared",
        page.paragraph(
            f"First: {comparison['first']}. Second: {comparison['second']}. Over the "
            f"clips that both have (N = {_count(comparison)}), resampled in pairs: second minus "
            "first."
        ),
        page.table(("metric", "difference", "95% interval", "p", "verdict"), rows),
        page.paragraph(
            "It speaks of these prompts and of one training run each, not of what other runs of "
            "the same recipes would give. Of twenty true ties one is called a difference."
        ),
    )


def _worst(
    document: dict[str, Any],
    measured: Measured,
    pairs: dict[str, SetClip],
    loudness: float | None,
) -> str:
    clips = {clip.name: clip for clip in measured.clips}
    rows = []
    for row in document["per_clip"][:WORST]:
        scores = ", ".join(f"{k} {_number(row[k], 3)}" for k in measured.scores if k in row)
        real = pairs.get(row["name"])
        rows.append(
            (
                row["prompt"] or row["name"],
                _heard(clips[row["name"]], loudness, scores),
                "" if real is None else _heard(real, loudness, "real"),
            )
        )
    return page.section(f"The worst {len(rows)}", page.table(("prompt", "clip", "real"), rows))


def _heard(clip: SetClip, loudness: float | None, note: str) -> object:
    try:
        wave, rate = load_clip(clip, loudness)
    except AudioError as error:
        return str(error)
    shown = min(rate, _RATE)
    return page.clip(resample(wave, rate, shown)[: 60 * shown], shown, note)


def _all(document: dict[str, Any]) -> str:
    rows = document["per_clip"]
    scores = sorted({name for row in rows for name in row} - {"name", "prompt", "seed"})
    table = page.table(
        ("prompt", "seed", *scores),
        [
            (row["prompt"] or row["name"], str(row["seed"]), *(_number(row.get(s)) for s in scores))
            for row in rows[:LISTED]
        ],
    )
    more = f", the worst {LISTED} of {len(rows)}" if len(rows) > LISTED else ""
    return page.section(f"Every clip{more}", table)


def _cards(document: dict[str, Any]) -> str:
    def told(value: Any) -> str:
        if isinstance(value, list):
            return ", ".join(str(v) for v in value[:10]) or "none"
        return str(value)

    card = {k: v for k, v in document["card"].items() if k != "reference_missing"}
    parts = [page.table(("what", "value"), [(k, told(v)) for k, v in card.items()])]
    for metric, facts in document["cards"].items():
        line = ", ".join(f"{k} {v}" for k, v in facts.items())
        parts.append(page.paragraph(f"{NAMES.get(metric, metric)}: {line}."))
    return page.section("Metric card", *parts)
