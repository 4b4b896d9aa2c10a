"""The commands `report`, `evaluate` and `weights`: how good trained models are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Argument, Option

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
from training.commands.options import RecipeOption, WeightsOption, recipe_or_none
from training.evaluation.config import Captions, Framing, Preset

_NAMED = 10
"""Number of excluded clips that are printed; `metrics.json` has all of them."""


def report(config: ConfigOption, overrides: OverridesArgument = None) -> None:
    """Judge the recipe's models against their prompts; writes report.html and report.json."""
    from training.evaluation.agreement.report import write_report
    from training.evaluation.config import ReportConfig

    recipe = load_recipe(config, overrides or [])
    path = write_report(recipe, recipe.section("report", ReportConfig), Console(stderr=True))
    print(path)


def evaluate(
    target: Annotated[
        Path, Argument(metavar="RUN|DIR", help="A trained run, or a folder of clips.")
    ],
    reference: Annotated[str, Option(help="Real clips: a folder, or a data folder of shards.")],
    overrides: OverridesArgument = None,
    config: RecipeOption = "",
    against: Annotated[Path | None, Option(help="Another run or folder to compare with.")] = None,
    split: Annotated[str, Option(help="Split of the shards to compare with.")] = "test",
    preset: Annotated[Preset | None, Option(help="Protocol of a benchmark; needs --list.")] = None,
    listed: Annotated[
        Path | None, Option("--list", help="AudioCaps' test.csv or musiccaps-public.csv.")
    ] = None,
    captions: Annotated[Captions, Option(help="Captions to use; see the README.")] = "first",
    clips: Annotated[
        int | None, Option(min=2, help="Generate for at most so many prompts.")
    ] = None,
    seed: Annotated[int, Option(min=0, help="Random seed for the generated clips.")] = 0,
    out: Annotated[Path | None, Option(help="Folder for figures and page.")] = None,
    weights: WeightsOption = None,
    cache: Annotated[
        Path | None, Option(help="Folder of embeddings (default: ~/.cache/attune/embeddings).")
    ] = None,
    codec: Annotated[
        str, Option(help="Codec for latents (default: the recipe's; builtin:sfx-small).")
    ] = "",
    framing: Annotated[
        Framing, Option(help="Windows of VGGish: every 0.48 s, or as in Google's code.")
    ] = "half",
    loudness: Annotated[
        float | None, Option(min=-70, max=0, help="Loudness of clips (LUFS).")
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

    if (preset is None) != (listed is None):
        raise AttuneError("--preset and --list go together")
    recipe = recipe_or_none(config, overrides)
    device = choose_device(device)
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
        if not path.exists() and recipe is not None:  # the name of a run
            if not (Path(recipe.run_dir) / path).is_dir():
                raise AttuneError(
                    f"{path}: neither a folder of clips nor a run in {recipe.run_dir}; name one"
                )
            path = Path(recipe.run_dir) / path
        if latest_checkpoint(path) is not None:
            if recipe is None:
                raise AttuneError(f"{path} is a trained run: give its recipe with --config")
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
        named = [f"{name}: {reason}" for name, reason in list(refused.items())[:_NAMED]]
        if len(refused) > _NAMED:
            named.append(f"{len(refused) - _NAMED} more (metrics.json)")
        for text in named:
            print(f"left out of {kind}: {text}", file=sys.stderr)
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


def weights(folder: WeightsOption = None) -> None:
    """Fetch the backbones that `evaluate` measures with: VGGish, PaSST, CLAP (about 1.6 GB)."""
    from training.evaluation.metrics.weights import SOURCES, default_weights, fetch_all

    if failed := fetch_all(folder or default_weights(), SOURCES, print):
        raise AttuneError(
            f"{', '.join(failed)} not fetched; `evaluate` leaves out the metrics that need them"
        )
