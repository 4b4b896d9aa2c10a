"""`python -m pipeline`: run, plan, status, gc, retry, and a look into the shards."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from common.cli import ConfigOption, JsonOption, OverridesArgument, print_json
from common.config import Recipe, load_recipe
from common.storage import open_store
from pipeline.commands.catalog import catalog_app
from pipeline.commands.shards import shards_app
from pipeline.config import PipelineConfig
from pipeline.progress import format_duration, format_rate

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
    """Plan, embed, encode and finalize; resumes where it was left.

    Runs on a Ray of its own, or on the cluster at RAY_ADDRESS.
    """
    from pipeline.run import run_pipeline

    recipe, settings = _load(config, overrides)
    summary, _ = run_pipeline(recipe, settings, say=_say(json))
    if json:
        print_json(summary)


@app.command()
def corpus(
    out: Annotated[Path, typer.Option("--out", help="Folder to write it to.")],
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    json: JsonOption = False,
) -> None:
    """Write the embedded corpus: synthesized sounds and music in the layouts of real datasets."""
    from pipeline.corpus.layout import write_corpus

    files = write_corpus(out, seed, progress=_say(json))
    if json:
        print_json(files)


@app.command()
def plan(
    config: ConfigOption, overrides: OverridesArgument = None, json: JsonOption = False
) -> None:
    """Read the catalogs and freeze the plan: what is encoded, what is refused and why."""
    from pipeline.run import make_plan

    recipe, settings = _load(config, overrides)
    say = _say(json)
    store = open_store(recipe.data_dir)
    frozen, is_new = make_plan(store, recipe, settings)
    if json:
        print_json(frozen.info)
        return
    say(f"plan {frozen.plan_hash} ({'new' if is_new else 'kept'}) in {store.uri}/plan")
    _print_rows(_catalog_rows(frozen.info["catalogs"]))
    say(
        f"{frozen.n_planned} clips in {frozen.n_shards} shards, "
        f"{frozen.info['n_unique_prompts']} unique prompts"
    )


@app.command()
def status(
    config: ConfigOption,
    overrides: OverridesArgument = None,
    refused: Annotated[
        bool, typer.Option("--refused", help="List every clip and row that was refused, and why.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Say where the run stands; works at any time, as it only reads files."""
    from common.shards import open_store_to_read
    from pipeline.inspect.status import read_refused, read_status

    recipe = load_recipe(config, overrides or [])
    store = open_store_to_read(recipe.data_dir)
    if refused:
        _list_refused(read_refused(store), json)
        return
    found = read_status(store)
    if json:
        print_json(found)
        return
    print(f"{found['data_dir']}: {found['state']}, plan {found['plan_hash']}")
    _print_rows([*_catalog_rows(found["catalogs"]), *_stage_rows(found)])


@app.command()
def retry(
    config: ConfigOption,
    overrides: OverridesArgument = None,
    reason: Annotated[
        list[str] | None,
        typer.Option("--reason", help="Refused for this reason, e.g. missing; may be repeated."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what there is to retry.")] = False,
    json: JsonOption = False,
) -> None:
    """Encode again the shards with clips that were refused, or that failed on every attempt.

    For audio that was restored since. Without --reason: refusals of every reason.
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
                f"sample {sample_id} was accepted before and is refused now; "
                "`python -m pipeline status --refused` says why"
            )


@app.command()
def gc(
    config: ConfigOption,
    overrides: OverridesArgument = None,
    delete: Annotated[bool, typer.Option("--delete", help="Remove them; else list only.")] = False,
    older_than: Annotated[
        str, typer.Option("--older-than", help="Keep what is younger, e.g. 90s, 24h, 7d, 0.")
    ] = "24h",
    json: JsonOption = False,
) -> None:
    """List what no commit or plan names: orphan tars, unused text chunks, stale poison files.

    A finished run's orphans are removed at any age, the tars that retry replaced among them: wait
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
        print(f"{item['key']}  {item['bytes']} bytes, {_age(item['age_s'])}: {item['why']}{kept}")
    number = len(found["deleted"]) if delete else sum(not item["kept"] for item in found["items"])
    print(
        f"{found['data_dir']}: {'removed' if delete else 'to remove:'} {number} files, "
        f"{found['bytes']} bytes" + ("" if delete or not number else "; --delete removes them")
    )


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _load(config: str, overrides: list[str] | None) -> tuple[Recipe, PipelineConfig]:
    recipe = load_recipe(config, overrides or [])
    return recipe, recipe.section("pipeline", PipelineConfig)


def _say(json: bool) -> Any:
    """Progress goes to stdout, or out of the way of a script's JSON."""
    return lambda line: print(line, file=sys.stderr if json else sys.stdout, flush=True)


def _print_rows(rows: Iterable[tuple[str, str]]) -> None:
    """Labels in one column, what there is to say in another."""
    rows = list(rows)
    width = max((len(label) for label, _ in rows), default=0)
    for label, text in rows:
        print(f"{label:<{width}}  {text}")


def _list_refused(rows: Iterable[dict[str, Any]], json: bool) -> None:
    if json:
        print_json(list(rows))
        return
    stages: Counter[str] = Counter()
    for row in rows:
        stages[row["stage"]] += 1
        detail = " ".join((row["detail"] or "").split())
        clip = row["native_id"] or row["source"]
        print(f"{row['dataset']}  {clip}  {row['stage']}: {row['reason']}  {detail}")
    encoding = stages.pop("audio", 0)
    print(f"{encoding} refused while encoding, {stages.total()} while planning")


def _catalog_rows(catalogs: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for label, count in catalogs.items():
        merged = f", merged {count['merged']}" if count["merged"] else ""
        held_out = f", held out {count['held_out']}" if count["held_out"] else ""
        refused = sum(count["refused"].values())
        accepted = f"read {count['read']} = accepted {count['accepted']}{merged}{held_out}"
        yield label, f"{accepted}, refused {refused}{_reasons(count['refused'])}"


def _stage_rows(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each stage of a run in a line, and each shard that is parked."""
    for stage, parts in (
        ("plan", _plan_parts(found["stages"]["plan"])),
        ("embed", _embed_parts(found["stages"]["embed"])),
        ("encode", _encode_parts(found["stages"]["encode"])),
        ("finalize", _finalize_parts(found)),
    ):
        yield stage, "  ".join(part for part in parts if part)
    for entry in found["poison"]:
        yield "poison", f"shard {entry['shard']:06d}: {entry['errors'][-1]}"


def _plan_parts(plan: dict[str, Any]) -> list[str]:
    return [
        f"{plan['read']} rows",
        f"{plan['accepted']} accepted",
        f"{plan['merged']} merged" if plan["merged"] else "",
        f"{plan['held_out']} held out" if plan["held_out"] else "",
        f"{sum(plan['refused'].values())} refused",
        f"{plan['shards']} shards",
        f"{plan['prompts']} prompts",
    ]


def _embed_parts(embed: dict[str, Any]) -> list[str]:
    return [
        f"{embed['chunks_done']}/{embed['chunks']} chunks",
        f"{embed['prompts_done']}/{embed['prompts']} prompts",
        _rate(embed["prompts_per_s"], "/s"),
        _eta(embed["eta_s"]),
    ]


def _encode_parts(encode: dict[str, Any]) -> list[str]:
    age = encode["last_commit_age_s"]
    return [
        f"{encode['shards_done']}/{encode['shards']} shards",
        f"{encode['clips_done']}/{encode['clips']} clips",
        f"{encode['hours']:.2f} h",
        f"{sum(encode['refused'].values())} refused{_reasons(encode['refused'])}",
        _rate(encode["times_real_time"], "x real time"),
        _eta(encode["eta_s"]),
        "" if age is None else f"last commit {_age(age)} ago",
    ]


def _finalize_parts(found: dict[str, Any]) -> list[str]:
    shards = found["shards"]
    written = "written" if found["stages"]["finalize"]["done"] else "not written yet"
    return [f"{shards['committed']}/{shards['planned']} committed", f"manifest {written}"]


def _reasons(refused: dict[str, int]) -> str:
    """` (silent 8, truncated 4)`, the most frequent first; nothing where nothing was refused."""
    reasons = ", ".join(f"{reason} {n}" for reason, n in Counter(refused).most_common())
    return f" ({reasons})" if reasons else ""


def _rate(per_s: float | None, unit: str) -> str:
    return "" if per_s is None else f"{format_rate(per_s)}{unit}"


def _eta(seconds: float | None) -> str:
    return "" if seconds is None else f"ETA {format_duration(seconds, hours=True)}"
