"""`python -m pipeline shards`: ls, show, stats, verify."""

from __future__ import annotations

from typing import Annotated

import typer

from common.cli import ConfigOption, JsonOption, OverridesArgument, print_json
from common.config import load_recipe
from common.shards import open_store_to_read
from common.storage import Store
from pipeline.inspect import list_shards, shard_stats, show_sample
from pipeline.verify import verify_shards

shards_app = typer.Typer(
    help="Look into finished shards.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


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
    config: ConfigOption, overrides: OverridesArgument = None, json: JsonOption = False
) -> None:
    """Clips, hours, prompts and licences by dataset; durations; refusals by reason."""
    found = shard_stats(_store(config, overrides))
    if json:
        print_json(found)
        return
    for name, row in found["datasets"].items():
        splits = ", ".join(f"{split} {number}" for split, number in row["splits"].items())
        print(
            f"{name:<12} {row['clips']:>7} clips  {row['hours']:>8.3f} h  {row['prompts']:>7} "
            f"prompts ({row['unique_prompts']} unique)  {splits}"
        )
    seconds, tokens = found["duration_s"], found["prompt_tokens"]
    print(f"duration     {seconds['min']:.2f} / {seconds['median']:.2f} / {seconds['max']:.2f} s")
    print(f"tokens       {tokens['min']} / {tokens['median']:g} / {tokens['max']} per prompt")
    for stream, row in enumerate(found["codebooks"]):
        print(f"codebook {stream}   {row['used']} codes used, perplexity {row['perplexity']:.1f}")
    for name, number in found["licenses"].items():
        print(f"licence      {number:>7}  {name}")
    for reason, number in found["rejected_by_reason"].items():
        print(f"refused      {number:>7}  {reason}")


@shards_app.command("verify")
def verify(
    config: ConfigOption, overrides: OverridesArgument = None, json: JsonOption = False
) -> None:
    """Check commits, tars, every sample and the manifest; exit 1 and name what is wrong."""
    found = verify_shards(_store(config, overrides))
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


def _store(config: str, overrides: list[str] | None) -> Store:
    recipe = load_recipe(config, overrides or [])
    return open_store_to_read(recipe.data_dir)
