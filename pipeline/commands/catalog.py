"""`python -m pipeline catalog`: check, show."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer import Option

from common.cli import JsonOption, OverridesArgument, print_json
from common.config import Recipe, load_recipe
from common.errors import AttuneError
from common.schema import SPLITS
from common.storage import StorageError
from pipeline.catalogs import CatalogEntry
from pipeline.config import PipelineConfig
from pipeline.datadir.frozen_plan import NO_TRAINING

catalog_app = typer.Typer(
    help="Look into catalogs before anything is encoded.", no_args_is_help=True
)

ConfigAnywhere = Annotated[str | None, Option("--config", help="Recipe; or the first argument.")]
NoAudioOption = Annotated[bool, Option("--no-audio", help="Do not look for audio files.")]


@catalog_app.command("check")
def check(
    overrides: OverridesArgument = None,
    config: ConfigAnywhere = None,
    no_audio: NoAudioOption = False,
    json: JsonOption = False,
) -> None:
    """Report on every row: accepted or refused and why; splits, hours, prompts, licences, leakage.

    Exits with 1 if nothing is accepted: no row of a catalog that is not held out, or no row at all.
    """
    from pipeline.inspect.catalogs import accepted_prompts, check_catalogs, check_prompts
    from pipeline.inspect.left_out import left_out
    from pipeline.plan.decide import decide
    from pipeline.rows import release_memory
    from pipeline.text.tokens import token_lines

    recipe, catalogs, settings = _load(config, overrides, no_audio)
    rules = settings.text_rules(recipe.seed)
    decision = decide(catalogs, rules=rules, overlap=settings.overlap)
    found = check_catalogs(decision) | {"look_for_audio": not no_audio}
    found |= left_out(catalogs, decision.rows)
    prompts = accepted_prompts(decision)
    del decision  # the tokenizer's library needs memory too
    release_memory()
    found["text_encoder"] = check_prompts(prompts, recipe.text_encoder)
    if json:
        print_json(found)
    else:
        # A pipe has no width, and the default of 80 columns would fold the table.
        console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
        _print_check(console, found, token_lines(found["text_encoder"]))
    datasets = found["datasets"]
    nothing = [name for name, n in datasets.items() if 0 < n["read"] == sum(n["refused"].values())]
    if nothing or not any(entry["accepted"] for entry in datasets.values()):
        what = f"all rows of {', '.join(nothing)} are refused" if nothing else "nothing is accepted"
        print(f"error: {what}", file=sys.stderr)
        raise typer.Exit(1)


@catalog_app.command("show")
def show(
    clip: Annotated[str, Option("--id", help="Sample, native, YouTube or Freesound id.")],
    overrides: OverridesArgument = None,
    config: ConfigAnywhere = None,
    no_audio: NoAudioOption = False,
    json: JsonOption = False,
) -> None:
    """Explain one clip: raw row, text after each step, accepted or refused and why."""
    from pipeline.inspect.catalogs import add_encoding_refusals, find_rows
    from pipeline.plan.decide import decide

    recipe, catalogs, settings = _load(config, overrides, no_audio)
    rules = settings.text_rules(recipe.seed)
    decision = decide(catalogs, rules=rules, overlap=settings.overlap)
    rows = find_rows(decision.rows, catalogs, rules, clip)
    try:
        add_encoding_refusals(rows, recipe.data_dir)
    except StorageError as error:  # catalogs can be shown without the store
        print(f"note: what encoding refused is not shown: {error}", file=sys.stderr)
    if json:
        print_json(rows)
        return
    for row in rows:
        steps = row.pop("steps")
        prompts = row.pop("prompts")
        for key, value in row.items():
            print(f"{key:<10} {value}")
        for name, text in steps:
            print(f"  {name:<32} {text}")
        for prompt in prompts:
            print(f"prompt     {prompt}")
        print()


def _load(
    config: str | None, overrides: list[str] | None, no_audio: bool
) -> tuple[Recipe, Sequence[CatalogEntry], PipelineConfig]:
    rest = list(overrides or [])
    if config is None:
        if not rest or "=" in rest[0]:
            raise AttuneError("name a recipe, e.g. configs/demo.yaml")
        config = rest.pop(0)
    recipe = load_recipe(config, rest)
    settings = recipe.section("pipeline", PipelineConfig)
    catalogs = [one.without_audio() if no_audio else one for one in settings.catalogs]
    return recipe, catalogs, settings


def _print_check(console: Console, found: dict[str, Any], lines: Sequence[str]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("dataset")
    fates = ("rows", "accepted", *SPLITS, "merged", "held out", "refused")
    for name in (*fates, "hours", "prompts", "unique"):
        table.add_column(name, justify="right")
    for label, entry in found["datasets"].items():
        counts = [entry["read"], entry["accepted"], *(entry["splits"][name] for name in SPLITS)]
        counts += [entry["merged"], entry["held_out"]]
        counts.append(sum(entry["refused"].values()))
        hours = "-"
        if entry["hours"] is not None:  # "+": the catalog states no duration for some rows
            hours = f"{entry['hours']:,.1f}" + ("+" if entry["without_hours"] else "")
        prompts = [entry["prompts"], entry["unique_prompts"]]
        table.add_row(label, *(f"{n:,}" for n in counts), hours, *(f"{n:,}" for n in prompts))
    console.print(table)
    entries = found["datasets"].values()
    accepted, train = (
        sum(n) for n in zip(*((e["accepted"], e["splits"]["train"]) for e in entries), strict=True)
    )
    if accepted and not train:
        console.print(NO_TRAINING)
    for label, entry in found["datasets"].items():
        console.print(f"\n[bold]{label}[/bold]", highlight=False)
        if entry["licenses"]:
            licences = ", ".join(f"{name} {n:,}" for name, n in list(entry["licenses"].items())[:6])
            console.print(f"  licences  {licences}", markup=False)
        speech = ", ".join(f"{policy} {n:,}" for policy, n in entry["speech"].items())
        console.print(f"  speech policies would drop  {speech}", markup=False)
        negations = entry["negations"]
        no_speech = ", ".join(f"{policy} {n:,}" for policy, n in negations["no_speech"].items())
        said = f"{negations['captions']:,} captions (no, without, ...)"
        if negations["captions"]:
            console.print(f"  negations  {said}; dropped for saying 'no speech': {no_speech}",
                      markup=False)  # fmt: skip
        if columns := found["unread_columns"].get(label):
            console.print(f"  columns not read  {', '.join(columns)}", markup=False)
        for reason, n in sorted(entry["refused"].items(), key=lambda item: -item[1]):
            example = entry["examples"][reason][0]
            console.print(f"  {reason} {n:,}  e.g. {example['source']}: {example['detail']}",
                          markup=False, soft_wrap=True)  # fmt: skip
    if found["unlisted_files"]:
        console.print("\n[bold]audio files that no row names[/bold]")
        for folder, entry in found["unlisted_files"].items():
            examples = ", ".join(entry["examples"])
            console.print(f"  {folder}  {entry['files']:,}, e.g. {examples}", markup=False)
    for title, key in (("shared clips", "overlaps"), ("kept out of training", "leakage")):
        if found[key]:
            console.print(f"\n[bold]{title}[/bold]")
            for name, n in found[key].items():
                console.print(f"  {name}  {n:,}", markup=False)
    if lines:
        console.print("\n[bold]text encoder[/bold]")
        for line in lines:
            console.print(f"  {line}", markup=False, soft_wrap=True)
    if not found["look_for_audio"]:
        console.print("\n--no-audio: did not look for audio files")
