"""`export`, `import`: weights to and from Hugging Face and audiocraft."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from common.cli import JsonOption, OverridesArgument, print_json
from common.config import load_recipe
from common.errors import AttuneError


def export_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="Folder of a run, a checkpoint or a codec, or builtin:NAME."
        ),
    ],
    to: Annotated[Path, typer.Option("--to", help="Folder to write; or an earlier export.")],
    overrides: OverridesArgument = None,
    config: Annotated[
        str, typer.Option("--config", help="The run's recipe (default: as the run keeps it).")
    ] = "",
    raw: Annotated[
        bool, typer.Option("--raw", help="Weights as training left them, not their average.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a run, or a codec, as a folder that Hugging Face's library plays by itself."""
    from training.interop.transfer import export

    if overrides and not config:
        raise AttuneError("overrides go with --config")
    recipe = load_recipe(config, overrides or []) if config else None
    _told(export(source, to, recipe, raw), as_json)


def import_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Folder, file or hub id: facebook/musicgen-small, facebook/encodec_32khz.",
        ),
    ],
    to: Annotated[Path, typer.Option("--to", help="Folder to write; new or empty.")],
    only: Annotated[str, typer.Option("--only", help="codec: take only the codec.")] = "",
    codec: Annotated[
        str, typer.Option("--codec", help="Use this codec, not a copy of the one inside.")
    ] = "",
    text_encoder: Annotated[
        str, typer.Option("--text-encoder", help="Use this encoder, not a copy of the one inside.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Take in a model or a codec that others trained: sampled, judged, fine-tuned like our own."""
    from training.interop.transfer import import_

    if only not in ("", "codec"):
        raise AttuneError(f"--only {only}: expected codec")
    _told(import_(source, to, "codec" if only else "all", codec, text_encoder), as_json)


def _told(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(facts)
    else:
        print(*(f"{key}: {value}" for key, value in facts.items()), sep="\n")
