"""`python -m pipeline shards`: ls, show, stats, export-audio, report, verify."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any

import typer

from common.cli import ConfigOption, JsonOption, OverridesArgument, print_json
from common.config import load_recipe
from common.shards import open_store_to_read
from common.storage import Store
from pipeline.inspect.shards import list_shards, shard_stats, show_sample
from pipeline.inspect.verify import verify_shards
from pipeline.progress import Progress

shards_app = typer.Typer(
    help="Look into finished shards.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

SampleOption = Annotated[
    int | None,
    typer.Option("--sample", min=1, metavar="N", help="Take the codes of N shards, not of all."),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Of every draw.")]


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
    sample_id: Annotated[str, typer.Argument(help="A sample id, or its first digits.")],
    config: ConfigOption,
    overrides: OverridesArgument = None,
    json: JsonOption = False,
) -> None:
    """Show one sample: where it is, its record, its prompts, its codes."""
    found = show_sample(_store(config, overrides), sample_id)
    if json:
        print_json(found)
        return
    for key, value in found.items():
        if key == "record":
            for name, item in value.items():
                if item not in (None, [], ""):
                    print(f"{name:<20} {item}")
        else:
            print(f"{key:<20} {value}")


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
    with _shards("stats") as tell:
        found = shard_stats(store, sample, seed, tell)
    if json:
        print_json(found)
        return
    for name, row in found["datasets"].items():
        splits = ", ".join(f"{split} {number}" for split, number in row["splits"].items())
        print(
            f"{name:<12} {row['clips']:>7} clips  {row['hours']:>8.3f} h  {row['prompts']:>7} "
            f"prompts ({row['unique_prompts']} unique)  {splits}"
        )
        print(f"  duration   {_spread(row['duration_s'], 's', '.2f')}")
        print(f"  tokens     {_spread(row['prompt_tokens'], 'per prompt', 'g')}")
        for stream, usage in enumerate(row["codebooks"]):
            print(f"  codebook {stream} {_usage(usage)}")
        for name, number in row["licenses"].items():
            print(f"  licence    {number:>7} clips  {name}")
    print(f"all          {found['n_samples']:>7} clips  {found['hours']:>8.3f} h")
    print(f"  duration   {_spread(found['duration_s'], 's', '.2f')}")
    print(f"  tokens     {_spread(found['prompt_tokens'], 'per prompt', 'g')}")
    for stream, usage in enumerate(found["codebooks"]):
        print(f"  codebook {stream} {_usage(usage)} of {found['codebook_size']}")
    source = found["codes_from"]
    drawn = "" if source["seed"] is None else f", drawn by seed {source['seed']}"
    print(
        f"codes are of {source['clips']} clips in {source['shards']} of {source['of_shards']} "
        f"shards{drawn}; all else is of every clip"
    )
    for reason, number in found["rejected_by_reason"].items():
        print(f"refused      {number:>7}  {reason}")


@shards_app.command("export-audio")
def export(
    sample_id: Annotated[str, typer.Argument(help="A sample id, or its first digits.")],
    config: ConfigOption,
    overrides: OverridesArgument = None,
    out: Annotated[
        str | None, typer.Option(help="FILE.wav; default: ID.wav in this folder.")
    ] = None,
    as_float: Annotated[
        bool, typer.Option("--float", help="32-bit float samples instead of 16-bit integers.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    json: JsonOption = False,
) -> None:
    """Decode one sample to a wav file."""
    from pipeline.inspect.export import export_audio  # brings torch: not for every command

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
    out: Annotated[str, typer.Option(help="The page.")] = "report.html",
    clips: Annotated[int, typer.Option(min=0, help="Decoded clips per dataset.")] = 3,
    sample: SampleOption = None,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Write one self-contained HTML page: totals, plots, clips to listen to."""
    from pipeline.inspect.export import check_target, write_file
    from pipeline.inspect.report import build_report

    recipe = load_recipe(config, overrides or [])
    path = check_target(out, force=True)
    store = open_store_to_read(recipe.data_dir)
    with _shards("report") as tell:
        html, shown = build_report(store, recipe.codec.path, clips, sample, seed, tell)
    write_file(path, html.encode())
    if json:
        print_json({"out": str(path), "bytes": len(html.encode()), "clips": shown})
        return
    print(f"{path}: {len(html.encode()) / 1e6:.2f} MB, {len(shown)} clips to listen to")


@contextmanager
def _shards(stage: str) -> Iterator[Callable[[int, int], None]]:
    """A line of progress from the first shard on: a mistake before that is one line by itself."""
    with ExitStack() as stack:
        line: list[Progress] = []

        def tell(done: int, total: int) -> None:
            if not line:
                line.append(stack.enter_context(Progress(stage, total, "shards")))
            line[0].update(done)

        yield tell


@shards_app.command("verify")
def verify(
    config: ConfigOption, overrides: OverridesArgument = None, json: JsonOption = False
) -> None:
    """Check commits, tars, every sample, the manifest and totals; exit 1 and name what is wrong."""
    store = _store(config, overrides)
    with _shards("verify") as tell:
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


def _usage(usage: dict[str, Any]) -> str:
    return f"perplexity {usage['perplexity']:>6.1f}, {usage['used']} codes used"


def _store(config: str, overrides: list[str] | None) -> Store:
    recipe = load_recipe(config, overrides or [])
    return open_store_to_read(recipe.data_dir)
