"""`python -m pipeline shards`: ls, show, stats, export-audio, report, verify."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any

import typer
from typer import Argument, Option

from common.cli import ConfigOption, JsonOption, OverridesArgument, print_json
from common.config import load_recipe
from common.shards import open_store_to_read
from common.storage import Store
from pipeline.inspect.shards import list_shards, shard_stats, show_sample
from pipeline.inspect.verify import verify_shards
from pipeline.progress import Progress

shards_app = typer.Typer(help="Look into finished shards.", no_args_is_help=True)

SampleOption = Annotated[
    int | None, Option("--sample", min=1, metavar="N", help="Read the codes of only N shards.")
]
SeedOption = Annotated[int, Option("--seed", min=0, help="Random seed of every draw.")]


@shards_app.command("ls")
def ls(config: ConfigOption, overrides: OverridesArgument = None, json: JsonOption = False) -> None:
    """List the committed shards."""
    rows = list_shards(_store(config, overrides))
    if json:
        print_json(rows)
        return
    for row in rows:
        print(
            f"{row['shard']:06d}  {row['clips']:>6} clips  {row['seconds'] / 3600:>8.3f} h  "
            f"{row['bytes']:>12} bytes  {row['refused']:>4} refused  {row['shard_key'] or '-'}"
        )


@shards_app.command("show")
def show(
    sample_id: Annotated[str, Argument(help="A sample id, or a unique prefix of it.")],
    config: ConfigOption,
    overrides: OverridesArgument = None,
    json: JsonOption = False,
) -> None:
    """Show one sample: its place, record, prompts and codes."""
    found = show_sample(_store(config, overrides), sample_id)
    if json:
        print_json(found)
        return
    record = {
        name: value for name, value in found.pop("record").items() if value not in (None, [], "")
    }
    for name, value in (found | record).items():
        print(f"{name:<20} {value}")


@shards_app.command("stats")
def stats(
    config: ConfigOption,
    overrides: OverridesArgument = None,
    sample: SampleOption = None,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Clips, hours, prompts, durations, licences and codes, by dataset; refusals by reason."""
    store = _store(config, overrides)
    with _progress("stats") as tell:
        found = shard_stats(store, sample, seed, tell)
    if json:
        print_json(found)
        return
    for name, row in [*found["datasets"].items(), ("all", found["all"])]:
        splits = ", ".join(f"{split} {number}" for split, number in row["splits"].items())
        print(
            f"{name:<12} {row['clips']:>7} clips  {row['hours']:>8.3f} h  {row['prompts']:>7} "
            f"prompts ({row['unique_prompts']} unique)  {splits}"
        )
        if row["duplicates"]:
            print(f"  copies     {row['duplicates']} clips repeat a sound of their own split")
        print(f"  duration   {_spread(row['duration_s'], 's', '.2f')}")
        print(f"  tokens     {_spread(row['prompt_tokens'], 'per prompt', 'g')}")
        for k, usage in enumerate(row["codebooks"]):
            used = f"{usage['used']} of {found['codebook_size']} codes used"
            print(f"  codebook {k} perplexity {usage['perplexity']:>6.1f}, {used}")
        for licence, number in row["licenses"].items():
            print(f"  licence    {number['clips']:>7} clips  {licence}")
    source = found["codes_from"]
    drawn = "" if source["seed"] is None else f", drawn by seed {source['seed']}"
    print(
        f"codes are from {source['clips']} clips in {source['shards']} of {source['of_shards']} "
        f"shards{drawn}; all other figures are from every clip"
    )
    for reason, number in found["rejected_by_reason"].items():
        print(f"refused      {number:>7}  {reason}")


@shards_app.command("export-audio")
def export(
    sample_id: Annotated[str, Argument(help="A sample id, or a unique prefix of it.")],
    config: ConfigOption,
    overrides: OverridesArgument = None,
    out: Annotated[str | None, Option(help="FILE.wav (default: ID.wav).")] = None,
    as_float: Annotated[bool, Option("--float", help="32-bit float, not 16-bit samples.")] = False,
    force: Annotated[bool, Option("--force", help="Replace an existing file.")] = False,
    json: JsonOption = False,
) -> None:
    """Decode one sample to a wav file."""
    from pipeline.inspect.export import export_audio  # imports torch

    recipe = load_recipe(config, overrides or [])
    store = open_store_to_read(recipe.data_dir)
    found = export_audio(store, recipe.codec.path, sample_id, out, as_float, force)
    if json:
        print_json(found)
        return
    clipped = f", {found['clipped']} samples clipped (--float keeps them)"
    print(
        f"{found['out']}: {found['sample_rate']} Hz, {found['seconds']:.2f} s, "
        f"peak {found['peak']:.3f}{clipped if found['clipped'] else ''}"
    )


@shards_app.command("report")
def report(
    config: ConfigOption,
    overrides: OverridesArgument = None,
    out: Annotated[str, Option(help="File of the page.")] = "report.html",
    clips: Annotated[int, Option(min=0, help="Number of decoded clips per dataset.")] = 3,
    sample: SampleOption = None,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Write one self-contained HTML page: totals, plots, clips to play."""
    from pipeline.inspect.export import check_target, write_file
    from pipeline.inspect.page import build_report

    recipe = load_recipe(config, overrides or [])
    path = check_target(out, force=True)
    store = open_store_to_read(recipe.data_dir)
    with _progress("report") as tell:
        html, shown = build_report(store, recipe.codec.path, clips, sample, seed, tell)
    write_file(path, html.encode())
    if json:
        print_json({"out": str(path), "bytes": len(html.encode()), "clips": shown})
        return
    print(f"{path}: {len(html.encode()) / 1e6:.2f} MB, {len(shown)} clips to listen to")


@shards_app.command("verify")
def verify(
    config: ConfigOption, overrides: OverridesArgument = None, json: JsonOption = False
) -> None:
    """Check commits, tars, every sample, manifest and totals; lists problems and exits with 1."""
    store = _store(config, overrides)
    with _progress("verify") as tell:
        found = verify_shards(store, tell)
    if json:
        print_json(found)
    else:
        for problem in found["problems"]:
            where = " ".join(str(problem[key]) for key in ("where", "sample_id") if problem[key])
            print(f"{where}: {problem['problem']}")
        print(
            f"{found['shards']} shards, {found['samples']} samples: "
            + (f"{len(found['problems'])} problems" if found["problems"] else "all well")
            + (f"; {len(found['orphans'])} orphan tars" if found["orphans"] else "")
        )
    if found["problems"]:
        raise typer.Exit(1)


def _spread(figures: dict[str, Any], unit: str, form: str) -> str:
    """`min 1 | p05 2 | ... | max 9 unit`."""
    kept = (f"{name} {figures[name]:{form}}" for name in figures if name != "histogram")
    return f"{' | '.join(kept)} {unit}" if figures.get("max") is not None else "none"


def _store(config: str, overrides: list[str] | None) -> Store:
    recipe = load_recipe(config, overrides or [])
    return open_store_to_read(recipe.data_dir)


@contextmanager
def _progress(stage: str) -> Iterator[Callable[[int, int], None]]:
    """Progress in shards; the line begins with the first shard, so an earlier error has no line."""
    with ExitStack() as stack:
        line: list[Progress] = []

        def tell(done: int, total: int) -> None:
            if not line:
                line.append(stack.enter_context(Progress(stage, total, "shards")))
            line[0].update(done)

        yield tell
