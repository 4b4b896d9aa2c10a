"""`python -m training report`: what data came in, how training went, which clips fit their prompt.

Collects the manifest, refused clips, training curves and generated clips, lets the judge classify
the generated clips, and writes `report.html` (one self-contained file) and `report.json` (the
figures) into the recipe's folder.  Generated clips are kept in the same folder.  They are generated
again only for another checkpoint or other settings.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from common.codec import load_codec
from common.config import Recipe
from common.errors import AttuneError
from common.shards import ShardDataset
from training.evaluation.agreement.clips import (
    ModelResult,
    fit_judge,
    generated_clips,
    labelled_clips,
    read_curve,
    reconstruct,
)
from training.evaluation.agreement.judge import Agreement
from training.evaluation.agreement.page import build_page
from training.evaluation.config import ReportConfig
from training.evaluation.statistics import sign_test
from training.sampling.config import SamplingConfig
from training.sampling.sampler import Sampler

CLIPS_PER_CLASS = 4
"""Generated clips per model and class, with seeds 0, 1, ...."""


def write_report(recipe: Recipe, config: ReportConfig, console: Console) -> Path:
    """Judge the recipe's models and write the report.

    Returns:
        Path of `report.html`.

    Raises:
        AttuneError: no shards, no trained model, or too few labelled clips.
    """
    out = Path(recipe.run_dir)
    dataset = ShardDataset.open(recipe.data_dir)
    codec = load_codec(recipe.codec.path)
    if dataset.summary["codec_id"] != codec.codec_id:
        raise AttuneError(
            f"{recipe.data_dir} was made with codec {dataset.summary['codec_id']}, but codec.path "
            f"{recipe.codec.path} is {codec.codec_id}; set codec.path to the codec of the shards"
        )

    # 1. Fit the judge on real training clips.
    train = labelled_clips(dataset, recipe.sample_rate)
    classes = sorted({clip.label for clip in train})
    held_out = [
        clip
        for clip in labelled_clips(dataset, recipe.sample_rate, held_out=True)
        if clip.label in classes
    ]
    judge = fit_judge(train, recipe.sample_rate)
    console.print(
        f"judge: {len(classes)} classes, {len(train)} real clips, cross-validated accuracy "
        f"{judge.accuracy:.3f}"
    )

    # 2. Judge the codec: held-out clips before and after encoding and decoding.
    codec_clips = held_out or train
    labels = [clip.label for clip in codec_clips]
    reconstructions = [reconstruct(dataset, codec, clip) for clip in codec_clips]
    original_agreement = judge.agreement([clip.wave for clip in codec_clips], labels)
    codec_agreement = judge.agreement(reconstructions, labels)
    console.print(
        f"codec: {codec_agreement.hits} of {codec_agreement.n} reconstructions keep their label "
        f"(originals: {original_agreement.hits})"
    )

    # 3. Generate clips with each model and judge them.
    sampling = recipe.section("sampling", SamplingConfig)
    prompts = {clip.label: clip.prompt for clip in reversed(train)}
    results = []
    for name, run in config.runs.items():
        sampler = Sampler.load(recipe, out / run)
        checkpoint = f"{sampler.checkpoint} (step {sampler.description['step']})"
        clips = generated_clips(
            sampler, out / "samples" / run, prompts, CLIPS_PER_CLASS, sampling, console
        )
        agreement = judge.agreement([clip.wave for clip in clips], [clip.label for clip in clips])
        results.append(ModelResult(name, checkpoint, clips, agreement, read_curve(out / run)))
        console.print(
            f"{name}: {agreement.hits} of {agreement.n} clips sound like their prompt "
            f"({agreement.rate:.3f}, chance {agreement.chance:.3f}, p = {agreement.p_value:.2g})"
        )

    # 4. Write the figures and the page.
    figures: dict[str, Any] = {
        "recipe": recipe.name,
        "data": dataset.summary,
        "judge": {"classes": classes, "clips": len(train), "accuracy": judge.accuracy},
        "codec": {
            "codec_id": codec.codec_id,
            "held_out": bool(held_out),
            "originals": _figures(original_agreement),
            "reconstructions": _figures(codec_agreement),
        },
        "models": {
            r.name: {"checkpoint": r.checkpoint, "agreement": _figures(r.agreement)}
            for r in results
        },
        "comparison": [_compare(results[0], other) for other in results[1:]],
    }
    kept = list(zip(codec_clips, reconstructions, codec_agreement.judged, strict=True))
    html = build_page(
        figures, dataset, train, kept, results, recipe.sample_rate, str(recipe.source_file)
    )
    (out / "report.json").write_text(json.dumps(figures, indent=2) + "\n")
    target = out / "report.html"
    target.write_text(html)
    return target


def _compare(first: ModelResult, other: ModelResult) -> dict[str, Any]:
    """Compare two models on the same prompts and seeds, with McNemar's exact test.

    The test asks: among the clips that only one model got right, are both models equally frequent?
    """
    a, b = (
        [heard == clip.label for heard, clip in zip(r.agreement.judged, r.clips, strict=True)]
        for r in (first, other)
    )
    only_first = sum(x and not y for x, y in zip(a, b, strict=True))
    only_other = sum(y and not x for x, y in zip(a, b, strict=True))
    return {
        "models": [first.name, other.name],
        "difference": first.agreement.rate - other.agreement.rate,
        "only_first": only_first,
        "only_other": only_other,
        "p_value": sign_test(only_first, only_other),
    }


def _figures(agreement: Agreement) -> dict[str, Any]:
    return {key: value for key, value in asdict(agreement).items() if key != "judged"}
