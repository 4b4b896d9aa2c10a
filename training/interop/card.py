"""The model card of an export: what was trained, on what data, and how to play it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import AttuneError
from common.page import render
from common.prompts import normalize_prompts, recorded_form
from common.shards import ShardDataset
from training.interop.sources import read_object

_EXAMPLE = "A dog is barking at the park"
_POLICIES = {
    "lemmas": "lowercase, without stop words and numbers, every word as its lemma (spaCy)",
    "lemmas-nltk": "lowercase, without stop words and numbers, every word as its lemma (WordNet)",
}


def model_card(
    description: dict[str, Any],
    run_config: dict[str, Any],
    data: str,
    metrics: str,
    **facts: Any,
) -> str:
    """The whole card (`card.md`), Markdown below the hub's YAML header.

    Args:
        description: the checkpoint's `model.json`.
        run_config: the run's `config.json`; empty if there is none.
        data, metrics: these sections, from `data_section` and `metrics_section`.
        facts: parameters, weights, sample_rate, frame_rate, frames, encoder, max_length, sampling,
            codec_card.
    """
    policy, form = description["prompt_policy"], recorded_form(description)
    try:
        prompt = normalize_prompts([_EXAMPLE], form)[0]
    except AttuneError:  # the library of that policy is not installed here
        prompt = "dog bark park"
    notes = left_behind(facts["sampling"])
    card = render(
        "training.interop",
        "card.md",
        description=description,
        arch=description["architecture"],
        lm=run_config.get("lm"),
        data=data,
        metrics=metrics,
        example=_EXAMPLE,
        prompt=prompt,
        form=form,
        form_of_prompts=_POLICIES.get(policy),
        notes=[_cell(note[:1].upper() + note[1:]) for note in notes],
        **facts,
    )
    return f"{card}\n"


def left_behind(sampling: dict[str, Any]) -> list[str]:
    """Settings of a recipe's sampling that transformers' MusicGen does not have, a line each."""
    found = []
    if prompt := sampling["negative_prompt"]:
        found.append(f"the recipe's negative prompt is not exported, MusicGen takes none: {prompt}")
    if sampling["cfg"] < 1:
        found.append(
            f"the recipe's guidance is {sampling['cfg']:g}, MusicGen's is at least 1: exported as 1"
        )
    return found


def data_section(data_dir: str, run_config: dict[str, Any]) -> str:
    """Datasets, clips, hours and licences of the training data, if the shards can be read."""
    if "imported" in run_config:
        return f"The weights were imported from {run_config['imported']['from']}: see there."
    try:
        dataset = ShardDataset.open(data_dir)
    except AttuneError as error:
        return f"Unknown: the shards could not be read when this was written ({error})."
    trained = run_config.get("plan_hash")
    if not trained or dataset.summary.get("plan_hash") != trained:
        return (
            f"Unknown: the shards in {data_dir} are not those that the run was started with "
            f"(plan {dataset.summary.get('plan_hash')}, trained on {trained})."
        )
    weights = run_config.get("lm", {}).get("datasets", {})
    rate = float(dataset.summary["frame_rate"])
    frames: Counter[str] = Counter()
    licences: dict[str, Counter[str]] = defaultdict(Counter)
    columns = ["dataset", "split", "frames", "license", "license_url"]
    for row in dataset.manifest.select(columns).to_pylist():
        name = row["dataset"]
        if row["split"] == "train" and weights.get(name, 1) > 0:
            frames[name] += row["frames"]
            licences[name][row["license"] or row["license_url"] or "not stated"] += 1
    clips = sum(counts.total() for counts in licences.values())
    lines = [
        f"Plan `{trained}`: {clips} clips, {frames.total() / rate / 3600:.2f} hours.",
        "",
        "| data set | clips | hours | licences (clips) |",
        "|---|---|---|---|",
    ]
    for name, counts in sorted(licences.items()):
        listed = ", ".join(f"{_cell(what)} ({n})" for what, n in counts.most_common())
        hours = f"{frames[name] / rate / 3600:.2f}"
        lines.append(f"| {_cell(name)} | {counts.total()} | {hours} | {listed} |")
    return "\n".join(lines)


def metrics_section(
    description: dict[str, Any], run: Path, checkpoint: Path, run_dir: Path, raw: bool = False
) -> str:
    """Validation loss, and the figures of this checkpoint in the `report.json` beside the run.

    Args:
        raw: the exported weights are not the averaged ones, to which all figures belong.
    """
    if raw:
        return "Nothing was measured of these weights: a run's figures are those of their average."
    rows: list[tuple[str, Any]] = []
    if "valid_loss" in description:
        rows.append(("validation loss (average of the streams)", description["valid_loss"]))
    reports = (folder / "report.json" for folder in (run_dir, run.parent))
    found = next(filter(None, (_reported(path, run.name, checkpoint.name) for path in reports)), {})
    rows += _leaves(found)
    if not rows:
        return "Nothing was measured for this checkpoint (no report.json beside the run)."
    lines = ["| | |", "|---|---|"]
    lines += [f"| {_cell(name)} | {_figure(value)} |" for name, value in rows]
    if found:
        lines += ["", "From `report.json` of the recipe. Figures in brackets are intervals."]
    return "\n".join(lines)


def _reported(path: Path, run: str, checkpoint: str) -> dict[str, Any]:
    """A report's figures of a checkpoint, which it names `.../RUN/checkpoints/STEP (step N)`."""
    for model in read_object(path).get("models", {}).values():
        named = Path(str(model.get("checkpoint")).split(" (step")[0])
        if named.name == checkpoint and named.parent.parent.name == run:
            return {key: value for key, value in model.items() if key != "checkpoint"}
    return {}


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Figures of a tree, named like `a.b`: numbers, and short lists of numbers."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) or (
            isinstance(value, list) and 0 < len(value) <= 4 and isinstance(value[0], int | float)
        ):
            yield f"{prefix}{key}", value


def _figure(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_figure(item) for item in value)}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    """Text for a table's cell, without line breaks, and escaped so that it cannot begin HTML."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
