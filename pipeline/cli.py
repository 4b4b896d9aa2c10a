"""`python -m pipeline`: run, plan, status, gc, retry, corpus, catalog, shards."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from common.cli import ConfigOption, JsonOption, OverridesArgument, print_json
from common.config import Recipe, load_recipe
from common.storage import open_store
from pipeline.commands.catalog import catalog_app
from pipeline.commands.shards import shards_app
from pipeline.config import PipelineConfig
from pipeline.datadir.copies import SAME_SOUND
from pipeline.progress import format_duration

app = typer.Typer(
    help="From catalogs and audio to token shards.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(catalog_app, name="catalog")
app.add_typer(shards_app, name="shards")


@app.command()
def run(
    config: ConfigOption, overrides: OverridesArgument = None, json: JsonOption = False
) -> None:
    """Plan, embed, encode and finalize; resumes where it stopped.

    Runs on a local Ray, or on the cluster at RAY_ADDRESS.
    """
    from pipeline.run import run_pipeline

    recipe, settings = _load(config, overrides)
    summary, _ = run_pipeline(recipe, settings, say=_say(json))
    if json:
        print_json(summary)


@app.command()
def corpus(
    out: Annotated[Path, Option(help="Folder to write.")],
    seed: Annotated[int, Option(min=0)] = 0,
    json: JsonOption = False,
) -> None:
    """Write the built-in corpus: synthesized sounds and music in the layouts of real datasets."""
    from pipeline.corpus.layout import write_corpus

    files = write_corpus(out, seed, progress=_say(json))
    if json:
        print_json(files)


@app.command()
def plan(
    config: ConfigOption, overrides: OverridesArgument = None, json: JsonOption = False
) -> None:
    """Read the catalogs and freeze the plan: what is encoded, what is refused and why."""
    from pipeline.datadir.frozen_plan import NO_TRAINING
    from pipeline.inspect.status import account, aligned
    from pipeline.planning import make_plan
    from pipeline.text.tokens import token_lines

    recipe, settings = _load(config, overrides)
    say = _say(json)
    store = open_store(recipe.data_dir)
    frozen, is_new = make_plan(store, recipe, settings)
    if json:
        print_json(frozen.info)
        return
    say(f"plan {frozen.plan_hash} ({'new' if is_new else 'kept'}) in {store.uri}/plan")
    for line in aligned({name: account(n) for name, n in frozen.info["catalogs"].items()}):
        say(line)
    say(
        f"{frozen.n_planned} clips in {frozen.n_shards} shards, "
        f"{frozen.info['n_unique_prompts']} unique prompts"
    )
    for line in token_lines(frozen.info.get("text_encoder")):
        say(line)
    if not frozen.n_train:
        say(f"note: {NO_TRAINING}")


@app.command()
def status(
    config: ConfigOption,
    overrides: OverridesArgument = None,
    refused: Annotated[bool, Option("--refused", help="List what was refused, and why.")] = False,
    json: JsonOption = False,
) -> None:
    """Report the state of a run, at any time, from its files."""
    from common.shards import open_store_to_read
    from pipeline.inspect.status import read_refused, read_status, status_lines

    recipe = load_recipe(config, overrides or [])
    store = open_store_to_read(recipe.data_dir)
    if refused:
        _list_refused(read_refused(store), json)
        return
    found = read_status(store)
    if json:
        print_json(found)
        return
    print(*status_lines(found), sep="\n")


@app.command()
def retry(
    config: ConfigOption,
    overrides: OverridesArgument = None,
    reason: Annotated[
        list[str] | None,
        Option(help="Only refusals for this reason, e.g. missing; may be repeated."),
    ] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Only report the choice.")] = False,
    json: JsonOption = False,
) -> None:
    """Encode again the shards that hold refused clips, or that failed on every attempt.

    For example after lost audio was restored. Without --reason: refusals of every reason.
    """
    from pipeline.run import retry_pipeline

    recipe, settings = _load(config, overrides)
    say = _say(json)
    found = retry_pipeline(recipe, settings, reason or (), dry_run, say)
    if json:
        print_json(found)
    elif not dry_run:
        refused = ", ".join(f"{name} {number}" for name, number in found["refused"].items())
        say(
            f"retried: {found['accepted']} clips are accepted now"
            + (f", refused again: {refused}" if refused else "")
        )
        for sample_id in found["lost"]:
            say(
                f"sample {sample_id} was accepted before and is refused now; `python -m pipeline "
                f"status --refused --config {config}` gives the reason"
            )


@app.command()
def gc(
    config: ConfigOption,
    overrides: OverridesArgument = None,
    delete: Annotated[bool, Option("--delete", help="Remove the listed files.")] = False,
    older_than: Annotated[str, Option(help="Keep younger files; e.g. 90s, 24h, 7d, 0.")] = "24h",
    json: JsonOption = False,
) -> None:
    """List files that no commit or plan names: orphan tars, unused text chunks, old poison files.

    In a finished run, --delete removes them at any age, also the tars that a retry replaced. Wait
    for a training that was started before the retry.
    """
    from common.shards import open_store_to_read
    from pipeline.repair.gc import collect_garbage, parse_age

    recipe = load_recipe(config, overrides or [])
    age = parse_age(older_than)
    found = collect_garbage(open_store_to_read(recipe.data_dir), age, delete)
    if json:
        print_json(found)
        return
    for item in found["items"]:
        kept = f"  (kept: younger than {older_than})" if item["kept"] else ""
        how_old = format_duration(item["age_s"])
        print(f"{item['key']}  {item['bytes']} bytes, age {how_old}: {item['why']}{kept}")
    number = len(found["deleted"]) if delete else sum(not item["kept"] for item in found["items"])
    print(
        f"{found['data_dir']}: {'removed' if delete else 'to remove:'} {number} files, "
        f"{found['bytes']} bytes" + ("" if delete or not number else "; --delete removes them")
    )


def _load(config: str, overrides: list[str] | None) -> tuple[Recipe, PipelineConfig]:
    recipe = load_recipe(config, overrides or [])
    return recipe, recipe.section("pipeline", PipelineConfig)


def _say(json: bool) -> Any:
    """A printer of progress lines: to stdout, or to stderr if stdout gets JSON."""
    return lambda line: print(line, file=sys.stderr if json else sys.stdout, flush=True)


def _list_refused(rows: Iterable[dict[str, Any]], json: bool) -> None:
    if json:
        print_json(list(rows))
        return
    stages: Counter[str] = Counter()
    for row in rows:
        stages["copy" if (row["detail"] or "").startswith(SAME_SOUND) else row["stage"]] += 1
        detail = " ".join((row["detail"] or "").split())
        clip = row["native_id"] or row["source"]
        print(f"{row['dataset']}  {clip}  {row['stage']}: {row['reason']}  {detail}")
    encoding, copies = stages.pop("audio", 0), stages.pop("copy", 0)
    left_out = f", {copies} copies left out after encoding" if copies else ""
    print(f"{encoding} refused while encoding, {stages.total()} while planning{left_out}")
