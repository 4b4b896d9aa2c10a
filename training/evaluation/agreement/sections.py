"""The sections of the report's page, each from collected facts to HTML."""

from __future__ import annotations

from collections import Counter
from typing import Any

from common.config import Recipe
from common.shards import ShardDataset, parquet_table
from training.evaluation import page
from training.evaluation.agreement.clips import LabelledClip, ModelResult, Wave, without_verdicts
from training.evaluation.agreement.judge import Agreement, SoundJudge
from training.evaluation.config import ReportConfig


def _rate(figures: dict[str, Any]) -> str:
    return f"{figures['rate']:.1%} [{figures['low']:.1%}, {figures['high']:.1%}]"


def summary_section(figures: dict[str, Any], results: list[ModelResult]) -> str:
    data = figures["data"]
    tiles = {
        "clips in shards": f"{data['n_samples']:,}",
        "hours": f"{data['hours']:.2f}",
        "refused, each with its reason": f"{data['n_rejected']:,}",
        "codec keeps the class": f"{figures['codec']['reconstructions']['rate']:.0%}",
    }
    for result in results:
        tiles[f"{result.name}: sounds like the prompt"] = f"{result.agreement.rate:.0%}"
    tiles["chance"] = f"{results[0].agreement.chance:.0%}"
    return page.key_figures(tiles)


def data_section(recipe: Recipe, dataset: ShardDataset) -> str:
    accepted = [
        (name, facts["clips"], round(facts["hours"], 3))
        for name, facts in sorted(dataset.summary["datasets"].items())
    ]
    refused = []
    for key in ("plan/rejects.parquet", "quarantine.parquet"):
        try:
            refused += parquet_table(dataset.store.read(key)).to_pylist()
        except FileNotFoundError:
            continue
    counts = Counter((row["dataset"], row["stage"], row["reason"]) for row in refused)
    example = {(row["dataset"], row["stage"], row["reason"]): row for row in refused}
    rows = [
        (*key, count, example[key]["native_id"], (example[key]["detail"] or "")[-100:])
        for key, count in sorted(counts.items())
    ]
    return page.section(
        "What came in, what was refused",
        page.paragraph(
            f"{dataset.summary['n_samples']} clips went into {dataset.summary['n_shards']} shards "
            f"({recipe.data_dir}); {len(refused)} were refused."
        ),
        page.table(("dataset", "clips", "hours"), accepted),
        page.table(("dataset", "stage", "reason", "clips", "for example", "found"), rows),
    )


def codec_section(
    clips: list[LabelledClip],
    reconstructions: list[Wave],
    agreement: Agreement,
    figures: dict[str, Any],
    config: ReportConfig,
    recipe: Recipe,
) -> str:
    shown: list[list[object]] = []
    seen: set[str] = set()
    for index, clip in sorted(enumerate(clips), key=lambda item: item[1].label):
        if clip.label not in seen and len(shown) < config.listed_reconstructions:
            seen.add(clip.label)
            heard = agreement.judged[index]
            mark = "right" if heard == clip.label else "wrong"
            shown.append(
                [
                    clip.label,
                    page.clip(clip.wave, recipe.sample_rate, "original"),
                    page.clip(
                        reconstructions[index], recipe.sample_rate, f"sounds like: {heard}", mark
                    ),
                ]
            )
    which = "held-out clips" if figures["held_out"] else "training clips (none are held out)"
    return page.section(
        "What the codec keeps",
        page.paragraph(
            f"Of {agreement.n} {which}, the judge recognizes {_rate(figures['originals'])} as they "
            f"are and {_rate(figures['reconstructions'])} after encoding and decoding "
            "(95% intervals). Generated clips cannot do better than what the codec lets through."
        ),
        page.table(("class", "original", "reconstruction"), shown),
    )


def curves_section(results: list[ModelResult]) -> str:
    def series(
        key: str, keep: Any = lambda row: True
    ) -> dict[str, tuple[list[float], list[float]]]:
        return {
            r.name: (
                [row["step"] for row in r.curve if row.get(key) is not None and keep(row)],
                [row[key] for row in r.curve if row.get(key) is not None and keep(row)],
            )
            for r in results
        }

    plot = page.curves(
        {
            "cross-entropy, with text (nats)": series("loss", lambda row: row["dropped"] == 0),
            "cross-entropy, without text": series("loss", lambda row: row["dropped"] > 0),
            "rr, on steps without text": series("rr"),
        }
    )
    return page.section(
        "How training went",
        page.figure(plot, "Loss curves of every model"),
        page.paragraph(
            "Cross-entropy is the mean over the codec's streams. The representation "
            "regularization belongs to steps without text only (paper, section 3.2); a model whose "
            "weight is 0 shows it as a measurement that it was not trained on."
        ),
    )


def models_section(
    results: list[ModelResult],
    judge: SoundJudge,
    classes: list[str],
    figures: dict[str, Any],
    recipe: Recipe,
) -> str:
    rows = [
        (
            r.name,
            r.checkpoint,
            r.agreement.n,
            r.agreement.hits,
            _rate(without_verdicts(r.agreement)),
            f"{r.agreement.chance:.1%}",
            f"{r.agreement.p_value:.2g}",
        )
        for r in results
    ]
    remarks = [
        page.paragraph(
            f"{c['models'][0]} against {c['models'][1]}, same prompts and seeds: difference "
            f"{c['difference']:+.1%}; {c['only_first']} clips only the first got right, "
            f"{c['only_other']} only the second; exact McNemar p = {c['p_value']:.2g}. "
            + (
                "That is no more than noise."
                if c["p_value"] >= 0.05
                else "That is more than noise, for these prompts and this one training seed."
            )
        )
        for c in figures["comparison"]
    ]
    plot = page.confusion(
        {r.name: ([c.label for c in r.clips], list(r.agreement.judged)) for r in results}, classes
    )
    return page.section(
        "Do the clips sound like their prompts?",
        page.paragraph(
            f"A small classifier (log-mel statistics, logistic regression) fitted on "
            f"{figures['judge']['clips']} real training clips says which of {len(classes)} classes "
            f"each generated clip sounds like. On real clips it is right {judge.accuracy:.1%} of "
            "the time (five-fold cross-validation by source). Intervals are 95%; p is the chance "
            "of as many hits by guessing."
        ),
        page.table(("model", "checkpoint", "clips", "agree", "rate", "chance", "p"), rows),
        *remarks,
        page.figure(plot, "Prompted class against judged class, per model"),
    )


def clips_section(
    results: list[ModelResult], train: list[LabelledClip], classes: list[str], recipe: Recipe
) -> str:
    rows = []
    for label in classes:
        real = next(clip for clip in train if clip.label == label)
        cells: list[object] = [
            f"{label} (prompt: {real.prompt})",
            page.clip(real.wave, recipe.sample_rate, "real"),
        ]
        for result in results:
            index = next(i for i, clip in enumerate(result.clips) if clip.label == label)
            heard = result.agreement.judged[index]
            mark = "right" if heard == label else "wrong"
            cells.append(
                page.clip(
                    result.clips[index].wave, recipe.sample_rate,
                    f"seed {result.clips[index].seed}, sounds like: {heard}", mark,
                )
            )  # fmt: skip
        rows.append(cells)
    return page.section(
        "Listen",
        page.paragraph(
            "The first seed of every class, not the best. Spectrograms run from 0 Hz at the "
            "bottom to half the sample rate, on a mel scale."
        ),
        page.table(("class", "real", *(result.name for result in results)), rows),
    )
