"""The commands `report`, `evaluate` and `weights`: how good trained models are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from common.cli import (
    ConfigOption,
    DeviceOption,
    JsonOption,
    OverridesArgument,
    choose_device,
    print_json,
)
from common.config import load_recipe
from common.errors import AttuneError
from training.evaluation.config import Captions, Framing, Preset

_NAMED = 10
"""Clips left out that are named; `metrics.json` has them all."""


def report(config: ConfigOption, overrides: OverridesArgument = None) -> None:
    """Judge the recipe's models against their prompts; writes report.html and report.json."""
    from training.evaluation.agreement.report import write_report
    from training.evaluation.config import ReportConfig

    recipe = load_recipe(config, overrides or [])
    path = write_report(recipe, recipe.section("report", ReportConfig), Console(stderr=True))
    print(path)


def evaluate(
    target: Annotated[
        Path, typer.Argument(metavar="RUN|DIR", help="A trained run, or a folder of clips.")
    ],
    overrides: OverridesArgument = None,
    reference: Annotated[
        str, typer.Option("--reference", help="Real clips: a folder, or a data folder of shards.")
    ] = "",
    config: Annotated[
        str, typer.Option("--config", help="Recipe of the run; a folder of clips needs none.")
    ] = "",
    against: Annotated[
        Path | None, typer.Option("--against", help="Another run or folder to compare with.")
    ] = None,
    split: Annotated[
        str, typer.Option("--split", help="Of the shards: which one to compare with.")
    ] = "test",
    preset: Annotated[
        Preset | None, typer.Option("--preset", help="A benchmark's protocol; goes with --list.")
    ] = None,
    listed: Annotated[
        Path | None, typer.Option("--list", help="AudioCaps' test.csv or musiccaps-public.csv.")
    ] = None,
    captions: Annotated[
        Captions, typer.Option("--captions", help="Which of a clip's captions: see the README.")
    ] = "first",
    clips: Annotated[
        int | None, typer.Option("--clips", min=2, help="Generate for so many prompts at most.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of generated clips.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for figures and page.")] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Backbones (default: ~/.cache/attune/weights).")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Embeddings (~/.cache/attune/embeddings).")
    ] = None,
    codec: Annotated[
        str, typer.Option("--codec", help="For latents (default: the recipe's, builtin:sfx-small).")
    ] = "",
    framing: Annotated[
        Framing,
        typer.Option("--framing", help="VGGish's windows: every 0.48 s, or as Google's code."),
    ] = "half",
    loudness: Annotated[
        float | None,
        typer.Option("--loudness", min=-70, max=0, help="Bring all clips to this many LUFS."),
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure generated clips against real ones: FAD, KL, CLAP; writes metrics.json and a page."""
    from training.evaluation.clip_sets import read_preset, read_reference, shuffled
    from training.evaluation.config import PRESET_S
    from training.evaluation.generated_set import generate_set
    from training.evaluation.metrics.cache import default_cache
    from training.evaluation.metrics.evaluate import Settings
    from training.evaluation.metrics.evaluate import evaluate as measure
    from training.evaluation.metrics.weights import default_weights
    from training.run.folder import latest_checkpoint
    from training.sampling.config import SamplingConfig
    from training.sampling.outputs import check_folder
    from training.sampling.sampler import Sampler

    if not reference:
        raise AttuneError("--reference is missing: a folder of real clips, or of shards")
    if (preset is None) != (listed is None):
        raise AttuneError("--preset and --list go together")
    if overrides and not config:
        raise AttuneError(f"override {overrides[0]!r} needs --config")
    device = choose_device(device)
    recipe = load_recipe(config, overrides or []) if config else None
    if preset is not None and listed is not None:
        real = read_preset(preset, listed, Path(reference), captions)
    else:
        real = read_reference(reference, split)
    console = Console(stderr=True)
    embeddings = cache or default_cache()
    check_folder(embeddings, "--cache")
    if out:
        check_folder(out)
    folders: list[Path] = []
    for path in (target, against):
        if path is None:
            continue
        if not path.exists() and recipe is not None:  # a run by its name
            if not (Path(recipe.run_dir) / path).is_dir():
                raise AttuneError(
                    f"{path}: neither a folder of clips nor a run in {recipe.run_dir}; name one"
                )
            path = Path(recipe.run_dir) / path
        if latest_checkpoint(path) is not None:
            if recipe is None:
                raise AttuneError(f"{path} is a trained run: --config names its recipe")
            prompts = [clip for clip in shuffled(real.clips) if clip.prompts][:clips]
            made = path.parent / "evaluated" / path.name
            longest = float("inf") if preset is None else PRESET_S
            sampler = Sampler.load(recipe, path, device)
            sampling = recipe.section("sampling", SamplingConfig)
            path = generate_set(sampler, sampling, prompts, made, console, seed, longest_s=longest)
        folders.append(path)
    result = out or folders[0] / "evaluation"
    if folders[0].is_dir():
        check_folder(result)
    settings = Settings(
        weights or default_weights(),
        embeddings,
        codec or (recipe.codec.path if recipe else Settings.codec),
        framing,
        loudness,
        device=device,
    )
    found = measure(folders[0], folders[1] if against else None, real, settings, result, console)
    for kind, refused in found["unusable"].items():
        for name, reason in list(refused.items())[:_NAMED]:
            print(f"left out of {kind}: {name}: {reason}", file=sys.stderr)
        if len(refused) > _NAMED:
            more = f"{len(refused) - _NAMED} more (metrics.json)"
            print(f"left out of {kind}: {more}", file=sys.stderr)
    if as_json:
        print_json(found)
        return
    for name, row in found["metrics"].items():
        known = row["low"] is not None
        interval = f"[{row['low']:.4g}, {row['high']:.4g}]" if known else "too few for an interval"
        clusters = row.get("clusters", row["clips"])
        within = "" if clusters == row["clips"] else f" in {clusters} clusters"
        print(f"{name:22s} {row['value']:.4g}  {interval}  N = {row['clips']}{within}")
    for name, row in found.get("comparison", {}).get("differences", {}).items():
        verdict = f"{row['better']} is better" if row["more_than_noise"] else "no more than noise"
        print(f"{name:22s} {row['value']:+.4g}  [{row['low']:+.4g}, {row['high']:+.4g}]  {verdict}")
    print(result / "metrics.html")


def weights(
    folder: Annotated[
        Path | None,
        typer.Option("--weights", help="Where they go (default: ~/.cache/attune/weights)."),
    ] = None,
) -> None:
    """Fetch the backbones that `evaluate` measures with: VGGish, PaSST, CLAP (about 1.6 GB)."""
    from training.evaluation.metrics.weights import SOURCES, default_weights, fetch_all

    if failed := fetch_all(folder or default_weights(), SOURCES, print):
        raise AttuneError(
            f"{', '.join(failed)} not fetched; metrics that need them are left out, the others run"
        )
