"""`export`, `import`: weights to and from Hugging Face and audiocraft."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from common.cli import JsonOption, OverridesArgument, print_json
from common.errors import AttuneError
from training.commands.options import recipe_or_none


def export_command(
    source: Annotated[
        str, Argument(metavar="RUN", help="Folder of a run, checkpoint or codec, or builtin:NAME.")
    ],
    to: Annotated[Path, Option(help="Folder to write; new, or of an earlier export.")],
    overrides: OverridesArgument = None,
    config: Annotated[str, Option(help="Recipe of the run (default: the run's copy).")] = "",
    raw: Annotated[bool, Option("--raw", help="Trained weights, not their average.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a run or a codec as a folder that Hugging Face's library can load."""
    from training.interop.transfer import export

    _print(export(source, to, recipe_or_none(config, overrides), raw), as_json)


def import_command(
    source: Annotated[
        str, Argument(metavar="SOURCE", help="Folder, file or hub id: facebook/musicgen-small.")
    ],
    to: Annotated[Path, Option(help="Folder to write; new or empty.")],
    only: Annotated[str, Option(help="With `codec`: import only the codec.")] = "",
    codec: Annotated[str, Option(help="Codec to use instead of the source's.")] = "",
    text_encoder: Annotated[str, Option(help="Text encoder to use instead of the source's.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Convert a model or codec that others trained, to sample, evaluate or fine-tune it here."""
    from training.interop.transfer import import_

    if only not in ("", "codec"):
        raise AttuneError(f"--only {only}: expected codec")
    _print(import_(source, to, "codec" if only else "all", codec, text_encoder), as_json)


def _print(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(facts)
    else:
        print(*(f"{key}: {value}" for key, value in facts.items()), sep="\n")
