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
from typer import Argument, Option

from common.cli import DeviceOption, JsonOption, OverridesArgument, choose_device, print_json
from common.errors import AttuneError
from training.commands.options import AsIsOption, HostOption, RecipeOption, recipe_or_none

preference_app = typer.Typer(
    help="A blind study: raters hear two models' clips of a prompt and say which is better.",
    no_args_is_help=True,
)
PORT = 8401

StudyArgument = Annotated[Path, Argument(metavar="STUDY", help="Folder of the study.")]
UrlOption = Annotated[str, Option("--url", help="Address for raters, e.g. https://lab.example.")]


@preference_app.command("prepare")
def prepare_command(
    a: Annotated[str, Option(help="Model under test: a run's name, or a folder of clips.")],
    b: Annotated[str, Option(help="Model to compare with, likewise.")],
    out: Annotated[Path, Option(help="Folder of the study.")],
    overrides: OverridesArgument = None,
    config: RecipeOption = "",
    prompts: Annotated[
        Path | None, Option(help="For runs: file of prompts (else --split).")
    ] = None,
    as_is: AsIsOption = False,
    split: Annotated[str, Option(help="For runs: split of the prompts.")] = "test",
    pairs: Annotated[int, Option(min=1, max=1000, help="Largest number of pairs.")] = 20,
    raters: Annotated[int, Option(min=1, max=1000, help="Number of raters.")] = 8,
    seed: Annotated[
        int | None, Option(min=0, help="Seed of orders and sides (default: drawn).")
    ] = None,
    clip_seed: Annotated[int, Option(min=0, help="Seed of clips.")] = 0,
    loudness: Annotated[float, Option(min=-60, max=0, help="Loudness of clips (LUFS).")] = -23.0,
    url: UrlOption = f"http://127.0.0.1:{PORT}",
    device: DeviceOption = "auto",
    dry_run: Annotated[bool, Option("--dry-run", help="Only report the study.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a study: pairs of equally loud clips under random names, and invitations."""
    from training.evaluation.preference.prepare import Order, check_free, draft, prepare
    from training.evaluation.preference.study import links

    recipe = recipe_or_none(config, overrides)
    check_url(url)
    device = choose_device(device)
    if as_is and prompts is None:
        raise AttuneError("--as-is is for the prompts of a file; name it with --prompts FILE")
    if not math.isfinite(loudness):
        raise AttuneError(f"--loudness {loudness}: expected LUFS, e.g. -23")
    drawn = secrets.randbits(32) if seed is None else seed
    order = Order(a, b, prompts, split, pairs, raters, drawn, clip_seed, loudness, device, as_is)
    if dry_run:
        check_free(out)
        facts = draft(order, recipe).describe(pairs) | {"raters": raters, "study": str(out)}
        (print_json if as_json else _print_draft)(facts)
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
    """List the raters' links, and the number of answers of each."""
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
    host: HostOption = "127.0.0.1",
    port: Annotated[int, Option(min=1, max=65535)] = PORT,
    url: UrlOption = "",
) -> None:
    """Serve the raters' page; after a restart it continues where it was."""
    from training.evaluation.preference.answers import Answers
    from training.evaluation.preference.server import build_app
    from training.evaluation.preference.study import read_study
    from training.web.serving import host_names, serve

    if host in ("0.0.0.0", "::") and not url:
        raise AttuneError(
            f"--host {host} listens on all addresses: give the raters' address, e.g. --url "
            f"http://this-machine:{port}; requests under other names are refused"
        )
    names = host_names(host) + ([check_url(url)] if url else [])
    study = read_study(folder)
    answers = Answers(folder, study)
    about = f"{len(study.pairs)} pairs, {len(study.raters)} raters"
    about += f", {len(answers.all())} of {study.answers} answers"
    serve(build_app(folder, study, answers, names), host, port, about)


@preference_app.command("report")
def report_command(folder: StudyArgument, as_json: JsonOption = False) -> None:
    """Report the result: shares with intervals, agreement, a page, a plot, answers as CSV."""
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
    """The host name in an address.

    Raises:
        AttuneError: it is not an http(s) address.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment:
        raise AttuneError(f"--url {url}: expected an address such as https://study.example.org")
    return f"[{parts.hostname}]" if ":" in str(parts.hostname) else str(parts.hostname)


def _print_draft(facts: dict[str, Any]) -> None:
    for side in ("a", "b"):
        about = facts[side]
        source = f"run {about['run']}" if about["run"] else "a folder of clips"
        print(f"{side.upper()}: {about['name']} ({source})")
    print(f"{len(facts['pairs'])} pairs for {facts['raters']} raters into {facts['study']}:")
    for pair in facts["pairs"]:
        seed = "" if pair["seed"] is None else f"  (seed {pair['seed']})"
        heard = " / ".join(text for text in pair.get("heard", ()) if text != pair["prompt"])
        print(f"  {pair['prompt']}{seed}" + (f"  heard as: {heard}" if heard else ""))
    if facts["unmatched"]:
        print(f"{len(facts['unmatched'])} clips without a partner are left out")
