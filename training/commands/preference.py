"""`preference prepare | links | serve | report`: which model do people prefer?"""

from __future__ import annotations

import math
import secrets
import sys
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.console import Console

from common.cli import DeviceOption, JsonOption, OverridesArgument, choose_device, print_json
from common.config import load_recipe
from common.errors import AttuneError
from training.web.serving import LOCAL_NAMES, listening
from training.web.serving import serve as serve_app

preference_app = typer.Typer(
    help="A blind study: raters hear two models' clips of a prompt and say which is better.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
PORT = 8401

StudyArgument = Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of the study.")]
UrlOption = Annotated[
    str,
    typer.Option("--url", help="What raters type to reach the page, e.g. https://lab.example."),
]


@preference_app.command("prepare")
def prepare_command(
    overrides: OverridesArgument = None,
    a: Annotated[
        str, typer.Option("--a", help="The model in question: a run's name, or a folder of clips.")
    ] = "",
    b: Annotated[str, typer.Option("--b", help="What it is compared with, likewise.")] = "",
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the study.")] = None,
    config: Annotated[
        str, typer.Option("--config", help="Recipe of the runs; folders of clips need none.")
    ] = "",
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="For runs: a line each, or .csv or .jsonl (else --split)."),
    ] = None,
    split: Annotated[
        str, typer.Option("--split", help="For runs: prompts of this split of the recipe's shards.")
    ] = "test",
    pairs: Annotated[int, typer.Option("--pairs", min=1, max=1000, help="At most.")] = 20,
    raters: Annotated[int, typer.Option("--raters", min=1, max=1000, help="Invitations.")] = 8,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Of orders and sides (default: drawn).")
    ] = None,
    clip_seed: Annotated[int, typer.Option("--clip-seed", min=0, help="Of generated clips.")] = 0,
    loudness: Annotated[
        float, typer.Option("--loudness", min=-60, max=0, help="LUFS of all clips.")
    ] = -23.0,
    url: UrlOption = f"http://127.0.0.1:{PORT}",
    device: DeviceOption = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would be made, and stop.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a study: pairs of equally loud clips under random names, and invitations."""
    from training.evaluation.preference.prepare import Order, check_free, draft, prepare
    from training.evaluation.preference.study import links

    for name, value in (("--a", a), ("--b", b), ("--out", out)):
        if not value:
            raise AttuneError(f"{name} is missing")
    assert out is not None
    if overrides and not config:
        raise AttuneError(f"override {overrides[0]!r} needs --config")
    check_url(url)
    device = choose_device(device)
    if not math.isfinite(loudness):
        raise AttuneError(f"--loudness {loudness}: expected LUFS, e.g. -23")
    recipe = load_recipe(config, overrides or []) if config else None
    drawn = secrets.randbits(32) if seed is None else seed
    order = Order(a, b, prompts, split, pairs, raters, drawn, clip_seed, loudness, device)
    if dry_run:
        check_free(out)
        told = draft(order, recipe).describe(pairs) | {"raters": raters, "study": str(out)}
        if as_json:
            print_json(told)
        else:
            _print_draft(told)
        return
    study, notes = prepare(order, recipe, out, Console(stderr=True))
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    invitations = links(study, url)
    if as_json:
        print_json(
            {
                "study": str(out),
                "pairs": len(study.pairs),
                "raters": len(study.raters),
                "sample_rate": study.sample_rate,
                "seed": study.seed,
                "notes": notes,
                "links": invitations,
            }
        )
        return
    print(
        f"{out}: {len(study.pairs)} pairs at {study.sample_rate} Hz, {len(study.raters)} raters; "
        "one link each:"
    )
    for link in invitations:
        print(link)
    print(f"next: python -m training preference serve {out}")


@preference_app.command("links")
def links_command(
    folder: StudyArgument,
    url: UrlOption = f"http://127.0.0.1:{PORT}",
    as_json: JsonOption = False,
) -> None:
    """List the raters' links, and how far each of them is."""
    from training.evaluation.preference.answers import Answers
    from training.evaluation.preference.study import links, read_study

    check_url(url)
    study = read_study(folder)
    answers = Answers(folder, study)
    rows = [
        {"rater": i + 1, "answered": len(answers.answered(i)), "of": len(study.pairs), "link": link}
        for i, link in enumerate(links(study, url))
    ]
    answers.close()
    if as_json:
        print_json(rows)
        return
    for row in rows:
        print(f"rater {row['rater']}  {row['answered']:3d} of {row['of']}  {row['link']}")


@preference_app.command("serve")
def serve_command(
    folder: StudyArgument,
    host: Annotated[
        str,
        typer.Option(
            "--host", help="Address to listen on; 0.0.0.0 lets other machines in (needs --url)."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = PORT,
    url: UrlOption = "",
) -> None:
    """Serve the raters' page; killed and started again, it goes on where it was."""
    from training.evaluation.preference.answers import Answers
    from training.evaluation.preference.server import build_app
    from training.evaluation.preference.study import read_study

    if host in ("0.0.0.0", "::") and not url:
        raise AttuneError(
            f"--host {host} listens everywhere: say with --url what raters type, e.g. "
            f"--url http://this-machine:{port}; requests under other names are refused"
        )
    names = [*LOCAL_NAMES, f"[{host}]" if ":" in host else host]
    names += [check_url(url)] if url else []
    study = read_study(folder)
    answers = Answers(folder, study)
    with listening(host, port) as listener:
        print(
            f"http://{host}:{port} ({len(study.pairs)} pairs, {len(study.raters)} raters, "
            f"{len(answers.all())} of {study.answers} answers); Ctrl-C ends it",
            flush=True,
        )
        serve_app(build_app(folder, study, answers, names), listener)


@preference_app.command("report")
def report_command(folder: StudyArgument, as_json: JsonOption = False) -> None:
    """Say what came of it: shares with intervals, agreement, a page, a plot, answers as CSV."""
    from training.evaluation.preference.page import write_report

    figures = write_report(folder)
    if as_json:
        print_json(figures)
        return
    found, votes = figures["preference"], figures["majorities"]
    for side in ("a", "b"):
        row, drawn = found[side], figures["by_prompt"][side]
        known = drawn["low"] is not None
        interval = f" [{drawn['low']:.1%}, {drawn['high']:.1%}]" if known else ""
        print(
            f"{side.upper()}: {figures[side]}  {row['share']:.1%}{interval}  {row['hits']} of "
            f"{row['n']} answers; most raters' choice for {votes[side]} prompts"
        )
    kappa = figures["agreement"]
    agreement = f"undefined, {kappa['why']}" if kappa["value"] is None else f"{kappa['value']:.3f}"
    left = figures["sides"]["left_chosen"]
    print(
        f"sign test by prompt p = {votes['p_value']:.2g} (if answers were independent "
        f"{found['a']['p_value']:.2g}); Fleiss' kappa {agreement}; left chosen "
        f"{left['share']:.1%} (p = {left['p_value']:.2g})"
    )
    print(f"\n{figures['table_4']}\n\n{folder / 'report' / 'report.html'}")


def check_url(url: str) -> str:
    """The name of the machine in an address.

    Raises:
        AttuneError: it is no http(s) address.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment:
        raise AttuneError(f"--url {url}: expected an address such as https://study.example.org")
    return f"[{parts.hostname}]" if ":" in str(parts.hostname) else str(parts.hostname)


def _print_draft(told: dict[str, Any]) -> None:
    for side in ("a", "b"):
        about = told[side]
        source = f"run {about['run']}" if about["run"] else "a folder of clips"
        print(f"{side.upper()}: {about['name']} ({source})")
    print(f"{len(told['pairs'])} pairs for {told['raters']} raters into {told['study']}:")
    for pair in told["pairs"]:
        seed = "" if pair["seed"] is None else f"  (seed {pair['seed']})"
        print(f"  {pair['prompt']}{seed}")
    if told["unmatched"]:
        print(f"{len(told['unmatched'])} clips without a partner stay out")
