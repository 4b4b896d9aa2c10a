"""The model card of an export: what was trained, on what data, and how to play it."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import AttuneError
from common.prompts import normalize_prompts
from common.shards import ShardDataset

_EXAMPLE = "A dog is barking at the park"
_POLICIES = {
    "lemmas": "lowercase, without stop words and numbers, every word as its lemma (spaCy)",
    "lemmas-nltk": "lowercase, without stop words and numbers, every word as its lemma (WordNet)",
}


def model_card(
    description: dict[str, Any],
    run_config: dict[str, Any],
    facts: dict[str, Any],
    data: str,
    metrics: str,
) -> str:
    """The whole card, Markdown under the hub's YAML header.

    Args:
        description: the checkpoint's `model.json`.
        run_config: the run's `config.json`; empty if there is none.
        facts: parameters, weights, sample_rate, frame_rate, seconds, frames, encoder, max_length,
            sampling, codec_card.
        data, metrics: those sections, as `data_section` and `metrics_section` make them.
    """
    arch = description["architecture"]
    sampling = facts["sampling"]
    codec_card = "; its card: codec.md" if facts["codec_card"] else ""
    decoder = (
        f"{arch['n_layers']} layers, width {arch['d_model']}, {arch['n_heads']} heads, "
        f"{facts['parameters'] / 1e6:.1f}M parameters"
    )
    rate = f"{facts['sample_rate']} Hz, {facts['frame_rate']:g} frames"
    encoder = f"{facts['encoder']}, frozen, at most {facts['max_length']} tokens"
    drawn = f"{facts['frames']} frames ({facts['seconds']:g} s)"
    return f"""---
library_name: transformers
pipeline_tag: text-to-audio
tags: [musicgen, text-to-audio]
---

# {description.get("recipe", "model")}: text to audio

A decoder of MusicGen's architecture over the codes of an EnCodec, conditioned on a text encoder:
`MusicgenForConditionalGeneration`, written by `python -m training export`.

| | |
|---|---|
| decoder | {decoder} |
| weights | {facts["weights"]}, after {description["step"]} steps |
| codec | {rate} per second, {arch["n_codebooks"]} x {arch["codebook_size"]} codes (`codec_id` \
{description["codec_id"]}{codec_card}) |
| text encoder | {encoder} (`text_encoder_id` {description["text_encoder_id"]}) |
| longest clip | {facts["seconds"]:g} s: longer ones were never trained |
{_training(run_config)}
## How to play it

```python
from transformers import pipeline

play = pipeline("text-to-audio", "THIS_FOLDER")
sound = play("{_prompt(description)}")
sound["audio"], sound["sampling_rate"]
```

It draws {drawn} with guidance {max(sampling["cfg"], 1.0):g}, top-k {sampling["top_k"]} and
temperature {sampling["temperature"]:g} (`generation_config.json`). T frames take
`max_new_tokens = T + {arch["n_codebooks"] - 1}`, as stream k lags k steps behind.
`AutoProcessor` and `MusicgenForConditionalGeneration` load the parts.
{_notes(sampling)}
## Form of prompts

{_prompt_form(description["prompt_policy"])}

## Data

{data}

## Measured

{metrics}

## Licence

None is set here: it is for whoever trained the model to choose one that the licences of the data,
of the text encoder and of the codec allow.
"""


def left_behind(sampling: dict[str, Any]) -> list[str]:
    """What a recipe's sampling does and transformers' MusicGen cannot, a line each."""
    found = []
    if prompt := sampling["negative_prompt"]:
        found.append(f"the recipe's negative prompt is not exported, MusicGen takes none: {prompt}")
    if sampling["cfg"] < 1:
        found.append(
            f"the recipe's guidance is {sampling['cfg']:g}, MusicGen's is 1 at least: exported as 1"
        )
    return found


def data_section(data_dir: str, run_config: dict[str, Any]) -> str:
    """Data sets, samples, hours and licences of what was trained on, if the shards can be read."""
    if "imported" in run_config:
        return f"The weights were imported from {run_config['imported']['from']}: see there."
    try:
        dataset = ShardDataset.open(data_dir)
    except AttuneError as error:
        return f"Unknown: the shards could not be read when this was written ({error})."
    trained = run_config.get("plan_hash")
    if not trained or dataset.summary.get("plan_hash") != trained:
        return (
            f"Unknown: what lies in {data_dir} is not what the run was started with "
            f"(plan {dataset.summary.get('plan_hash')}, trained on {trained})."
        )
    weights = run_config.get("lm", {}).get("datasets", {})
    rate = float(dataset.summary["frame_rate"])
    clips: Counter[str] = Counter()
    seconds: dict[str, float] = defaultdict(float)
    licences: dict[str, Counter[str]] = defaultdict(Counter)
    columns = ["dataset", "split", "frames", "license", "license_url"]
    for row in dataset.manifest.select(columns).to_pylist():
        name = row["dataset"]
        if row["split"] == "train" and weights.get(name, 1) > 0:
            clips[name] += 1
            seconds[name] += row["frames"] / rate
            licences[name][row["license"] or row["license_url"] or "not stated"] += 1
    lines = [
        f"Plan `{trained}`: {sum(clips.values())} clips, {sum(seconds.values()) / 3600:.2f} hours.",
        "",
        "| data set | clips | hours | licences (clips) |",
        "|---|---|---|---|",
    ]
    for name, count in sorted(clips.items()):
        listed = ", ".join(f"{_cell(what)} ({n})" for what, n in licences[name].most_common())
        lines.append(f"| {_cell(name)} | {count} | {seconds[name] / 3600:.2f} | {listed} |")
    return "\n".join(lines)


def metrics_section(
    description: dict[str, Any], run: Path, checkpoint: Path, run_dir: Path, raw: bool = False
) -> str:
    """Validation loss, and what `report.json` beside the run says of this very checkpoint.

    Args:
        raw: the weights are those that training left; all figures are of their average.
    """
    if raw:
        return "Nothing was measured of these weights: a run's figures are those of their average."
    rows: list[tuple[str, Any]] = []
    if "valid_loss" in description:
        rows.append(("validation loss (average of the streams)", description["valid_loss"]))
    source = ""
    for folder in dict.fromkeys((run_dir, run.parent)):
        found = _reported(folder / "report.json", run.name, checkpoint.name)
        if found:
            rows += _leaves(found)
            source = "\nFrom `report.json` of the recipe. Figures in brackets are intervals.\n"
            break
    if not rows:
        return "Nothing was measured for this checkpoint (no report.json beside the run)."
    table = "\n".join(f"| {_cell(name)} | {_figure(value)} |" for name, value in rows)
    return f"| | |\n|---|---|\n{table}\n{source}".rstrip()


def _notes(sampling: dict[str, Any]) -> str:
    lines = (_cell(line[:1].upper() + line[1:]) for line in left_behind(sampling))
    return "".join(f"{line}.\n" for line in lines)


def _training(run_config: dict[str, Any]) -> str:
    lm = run_config.get("lm")
    if not lm:
        return ""
    rr = lm["rr"]
    how = (
        f"representation regularization {rr['weight']:g} ({rr['pool']} pooling)"
        if rr["weight"]
        else "no representation regularization"
    )
    start = f", from the weights of {lm['init_from']}" if lm.get("init_from") else ""
    return (
        f"| training | {lm['steps']} steps of {lm['batch_size']} clips of at most "
        f"{lm['segment_s']:g} s{start}; text dropped {lm['cfg']['dropout']:.0%}, {how}, "
        f"AdamW {lm['optim']['lr']:g}, average {lm['ema_decay']:g}, {lm['precision']} |\n"
    )


def _prompt(description: dict[str, Any]) -> str:
    try:
        return normalize_prompts([_EXAMPLE], description["prompt_policy"])[0]
    except AttuneError:  # the library of that policy is not installed here
        return "dog bark park"


def _prompt_form(policy: str) -> str:
    if policy not in _POLICIES:
        return f"The prompts of the training data stand as they were written: `{_EXAMPLE}`."
    said = _prompt({"prompt_policy": policy})
    return (
        f"The model was trained on prompts in one form: {_POLICIES[policy]}.\n"
        f"The pipeline does not bring them into it. Instead of `{_EXAMPLE}` say\n`{said}`; in "
        f'Attune `common.prompts.normalize_prompts([prompt], "{policy}")` does that.\nWhole '
        "sentences are heard too, with words in them that training never had."
    )


def _reported(path: Path, run: str, checkpoint: str) -> dict[str, Any] | None:
    """What a report says of a checkpoint, named there as `.../RUN/checkpoints/STEP (step N)`."""
    try:
        models = json.loads(path.read_text(encoding="utf-8"))["models"].values()
        for model in models:
            named = Path(str(model["checkpoint"]).split(" (step")[0])
            if named.name == checkpoint and named.parent.parent.name == run:
                return {key: value for key, value in model.items() if key != "checkpoint"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Figures of a tree as `a.b`: numbers, and short lists of them."""
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
    """Catalogs' words in a table: nothing that would end the cell or begin HTML."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
