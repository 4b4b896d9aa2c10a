"""`python -m training report`: what came in, what was learnt, and whether it follows the prompt.

Collects the facts (manifest, refusals, curves, clips), has the generated clips judged, and writes
`report.html` (one self-contained file) and `report.json` (the figures) into the recipe's folder.
Generated clips are kept beside it, and made again only for another checkpoint or other settings.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import soundfile
import torch
from numpy.typing import NDArray
from rich.console import Console
from scipy.stats import binomtest

from common.audio import AudioError, read_audio, resample
from common.codec import Codec, load_codec
from common.config import Recipe
from common.errors import AttuneError
from common.shards import ShardDataset
from training.config import SamplingConfig
from training.evaluation import page
from training.evaluation.agreement import Agreement, SoundJudge, measure_agreement
from training.evaluation.config import ReportConfig
from training.lm.generate import Sampler

Wave = NDArray[np.float32]


@dataclass(frozen=True)
class LabelledClip:
    """One real clip of a known class."""

    row: int
    """In the manifest."""
    label: str
    prompt: str
    group: str
    wave: Wave


@dataclass(frozen=True)
class GeneratedClip:
    """One clip made by a model."""

    label: str
    prompt: str
    seed: int
    path: Path
    wave: Wave


@dataclass(frozen=True)
class ModelResult:
    """What one trained model made and how it was judged."""

    name: str
    checkpoint: str
    clips: list[GeneratedClip]
    agreement: Agreement
    curve: list[dict[str, Any]]


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
            f"{recipe.data_dir} was made with codec {dataset.summary['codec_id']}, but "
            f"{recipe.codec.path} is {codec.codec_id}; name the codec it was made with"
        )

    # 1. A judge, fitted on real training clips.
    train = labelled_clips(dataset, recipe.sample_rate, config, held_out=False)
    classes = sorted({clip.label for clip in train})
    held_out = [
        clip
        for clip in labelled_clips(dataset, recipe.sample_rate, config, held_out=True)
        if clip.label in classes
    ]
    judge = SoundJudge(recipe.sample_rate).fit(
        [clip.wave for clip in train], [clip.label for clip in train], [c.group for c in train]
    )
    console.print(
        f"judge: {len(classes)} classes, {len(train)} real clips, cross-validated accuracy "
        f"{judge.accuracy:.3f}"
    )

    # 2. The codec: held-out clips, as they are and after encoding and decoding.
    codec_clips = held_out or train
    labels = [clip.label for clip in codec_clips]
    reconstructions = [reconstruct(dataset, codec, clip) for clip in codec_clips]
    original_agreement = judge.agreement([clip.wave for clip in codec_clips], labels)
    codec_agreement = judge.agreement(reconstructions, labels)
    console.print(
        f"codec: {codec_agreement.hits} of {codec_agreement.n} reconstructions keep their label "
        f"(originals: {original_agreement.hits})"
    )

    # 3. The models.
    sampling = recipe.section("sampling", SamplingConfig)
    prompts = {clip.label: clip.prompt for clip in reversed(train)}
    results = []
    for name, run in config.runs.items():
        clips, checkpoint = generated_clips(recipe, run, prompts, config, sampling, console)
        judged = judge.judge([clip.wave for clip in clips])
        agreement = measure_agreement(judged, [clip.label for clip in clips])
        results.append(ModelResult(name, checkpoint, clips, agreement, read_curve(out / run)))
        console.print(
            f"{name}: {agreement.hits} of {agreement.n} clips sound like their prompt "
            f"({agreement.rate:.3f}, chance {agreement.chance:.3f}, p = {agreement.p_value:.2g})"
        )

    # 4. The figures, and the page.
    figures: dict[str, Any] = {
        "recipe": recipe.name,
        "data": dataset.summary,
        "judge": {"classes": classes, "clips": len(train), "accuracy": judge.accuracy},
        "codec": {
            "codec_id": codec.codec_id,
            "held_out": bool(held_out),
            "originals": _without_verdicts(original_agreement),
            "reconstructions": _without_verdicts(codec_agreement),
        },
        "models": {
            result.name: {
                "checkpoint": result.checkpoint,
                "agreement": _without_verdicts(result.agreement),
            }
            for result in results
        },
        "comparison": [paired_comparison(results[0], other) for other in results[1:]],
    }
    sections = [
        _summary_section(figures, results),
        _data_section(recipe, dataset),
        _codec_section(
            codec_clips, reconstructions, codec_agreement, figures["codec"], config, recipe
        ),
        _curves_section(results),
        _models_section(results, judge, classes, figures, recipe),
        _clips_section(results, train, classes, recipe),
    ]
    html = page.page(
        f"Attune: {recipe.name}",
        "From catalogs to audio in one run: what came in, what was refused, what the codec keeps, "
        "how training went, and whether the generated clips sound like their prompts.",
        sections,
        f"Made {date.today().isoformat()} by `python -m training report --config "
        f"{recipe.source_file}`, torch {torch.__version__}. Players hold MP3 copies; the wav files "
        "and how each was made lie in the run folder.",
    )
    (out / "report.json").write_text(json.dumps(figures, indent=2) + "\n")
    target = out / "report.html"
    target.write_text(html)
    return target


# --- collecting -----------------------------------------------------------------------------------


def labelled_clips(
    dataset: ShardDataset, sample_rate: int, config: ReportConfig, held_out: bool
) -> list[LabelledClip]:
    """Real clips of one known class: exactly one tag, no caption.

    Args:
        dataset: the shards' manifest says where the source audio lies.
        sample_rate: Hz of the returned waveforms.
        config: how many classes, how many clips each at least.
        held_out: rows of the other splits instead of `train`.

    Raises:
        AttuneError: fewer than two classes have enough training clips, or audio is gone.
    """
    split = pc.equal(dataset.manifest["split"], "train")
    table = dataset.manifest.append_column("row", pa.array(range(len(dataset))))
    table = table.filter(pc.invert(split) if held_out else split)
    table = table.filter(
        pc.and_(
            pc.equal(pc.list_value_length(table["tags"]), 1),
            pc.equal(pc.coalesce(pc.list_value_length(table["captions"]), pa.scalar(0)), 0),
        )
    )
    columns = ["row", "tags", "prompts", "group_id", "audio_uri", "start_s", "end_s"]
    rows = table.select(columns).to_pylist()
    if not held_out:
        counts = Counter(row["tags"][0] for row in rows)
        frequent = {
            name
            for name, count in counts.most_common(config.max_classes)
            if count >= config.min_clips
        }
        if len(frequent) < 2:
            raise AttuneError(
                f"report: needs two classes with at least {config.min_clips} training clips of "
                f"exactly one tag and no caption; found {len(frequent)}"
            )
        rows = [row for row in rows if row["tags"][0] in frequent]
    clips = []
    for row in rows:
        try:
            audio = read_audio(row["audio_uri"], row["start_s"], row["end_s"])
        except AudioError as error:
            raise AttuneError(f"report: source audio {row['audio_uri']}: {error}") from error
        clips.append(
            LabelledClip(
                row["row"],
                row["tags"][0],
                row["prompts"][0],
                row["group_id"],
                resample(audio.wav, audio.sample_rate, sample_rate),
            )
        )
    return clips


def reconstruct(dataset: ShardDataset, codec: Codec, clip: LabelledClip) -> Wave:
    """Decode the codes that the shards hold for a clip: float32 of the clip's own length."""
    codes = torch.from_numpy(dataset.read(clip.row).codes.astype(np.int64))
    return codec.decode(codes[None])[0].cpu().numpy()[: len(clip.wave)]


def generated_clips(
    recipe: Recipe,
    run: str,
    prompts: dict[str, str],
    config: ReportConfig,
    sampling: SamplingConfig,
    console: Console,
) -> tuple[list[GeneratedClip], str]:
    """Clips of a model for every class, from disk where this checkpoint made them already."""
    sampler = Sampler.load(recipe, Path(recipe.run_dir) / run)
    folder = Path(recipe.run_dir) / "samples" / run
    folder.mkdir(parents=True, exist_ok=True)
    made_by = {
        "checkpoint": str(sampler.checkpoint),
        "step": sampler.description["step"],
        "codec_id": sampler.codec.codec_id,
        "text_encoder_id": sampler.encoder.text_encoder_id,
        "duration_s": config.duration_s,
        "cfg": sampling.cfg,
        "top_k": sampling.top_k,
        "temperature": sampling.temperature,
        "weights": sampler.checkpoint.stat().st_mtime_ns,
    }
    wanted = [
        (label, prompt, seed)
        for label, prompt in sorted(prompts.items())
        for seed in range(config.clips_per_class)
    ]
    paths = [folder / f"{_slug(label)}-seed{seed}.wav" for label, _, seed in wanted]
    missing = [
        index
        for index, ((_, prompt, seed), path) in enumerate(zip(wanted, paths, strict=True))
        if not _is_made(path, made_by | {"prompt": prompt, "seed": seed})
    ]
    if missing:
        console.print(f"{run}: generating {len(missing)} clips of {config.duration_s:g} s")
        texts = [wanted[index][1] for index in missing]
        seeds = [wanted[index][2] for index in missing]
        waves, _ = sampler.generate(texts, config.duration_s, seeds, sampling)
        for index, wave, normalized in zip(missing, waves, sampler.normalize(texts), strict=True):
            _, prompt, seed = wanted[index]
            soundfile.write(paths[index], np.clip(wave, -1, 1), recipe.sample_rate, "PCM_16")
            facts = made_by | {"prompt": prompt, "normalized_prompt": normalized, "seed": seed}
            paths[index].with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")
    clips = [
        GeneratedClip(label, prompt, seed, path, soundfile.read(path, dtype="float32")[0])
        for (label, prompt, seed), path in zip(wanted, paths, strict=True)
    ]
    return clips, f"{sampler.checkpoint} (step {sampler.description['step']})"


def read_curve(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's `log.jsonl`; a step that was logged again after a resume counts once."""
    path = run / "log.jsonl"
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return list({row["step"]: row for row in rows if "dropped" in row}.values())


def paired_comparison(first: ModelResult, other: ModelResult) -> dict[str, Any]:
    """Do two models that got the same prompts and seeds differ by more than noise?

    Exact McNemar test: of the clips on which they disagree, is the split other than even?
    """
    a = [h == c.label for h, c in zip(first.agreement.judged, first.clips, strict=True)]
    b = [h == c.label for h, c in zip(other.agreement.judged, other.clips, strict=True)]
    only_first = sum(x and not y for x, y in zip(a, b, strict=True))
    only_other = sum(y and not x for x, y in zip(a, b, strict=True))
    disagree = only_first + only_other
    return {
        "models": [first.name, other.name],
        "difference": first.agreement.rate - other.agreement.rate,
        "only_first": only_first,
        "only_other": only_other,
        "p_value": float(binomtest(only_first, disagree, 0.5).pvalue) if disagree else 1.0,
    }


def _is_made(path: Path, facts: dict[str, Any]) -> bool:
    sidecar = path.with_suffix(".json")
    if not path.is_file() or not sidecar.is_file():
        return False
    found = json.loads(sidecar.read_text())
    return all(found.get(key) == value for key, value in facts.items())


def _slug(label: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in label.lower()).split())


def _without_verdicts(agreement: Agreement) -> dict[str, Any]:
    return {key: value for key, value in asdict(agreement).items() if key != "judged"}


# --- the page's sections --------------------------------------------------------------------------


def _rate(agreement: dict[str, Any] | Agreement) -> str:
    a = agreement if isinstance(agreement, dict) else _without_verdicts(agreement)
    return f"{a['rate']:.1%} [{a['low']:.1%}, {a['high']:.1%}]"


def _summary_section(figures: dict[str, Any], results: list[ModelResult]) -> str:
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


def _data_section(recipe: Recipe, dataset: ShardDataset) -> str:
    accepted = [
        (name, facts["clips"], round(facts["hours"], 3))
        for name, facts in sorted(dataset.summary["datasets"].items())
    ]
    refused = []
    for key in ("plan/rejects.parquet", "quarantine.parquet"):
        try:
            refused += pq.read_table(pa.BufferReader(dataset.store.read(key))).to_pylist()
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


def _codec_section(
    clips: list[LabelledClip],
    reconstructions: list[Wave],
    agreement: Agreement,
    figures: dict[str, Any],
    config: ReportConfig,
    recipe: Recipe,
) -> str:
    shown: list[list[object]] = []
    seen: set[str] = set()
    for index, clip in enumerate(clips):
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


def _curves_section(results: list[ModelResult]) -> str:
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


def _models_section(
    results: list[ModelResult],
    judge: SoundJudge,
    classes: list[str],
    figures: dict[str, Any],
    recipe: Recipe,
) -> str:
    rows = [
        (r.name, r.checkpoint, r.agreement.n, r.agreement.hits, _rate(r.agreement),
         f"{r.agreement.chance:.1%}", f"{r.agreement.p_value:.2g}")
        for r in results
    ]  # fmt: skip
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


def _clips_section(
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
