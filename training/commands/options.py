"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from common.config import Recipe, load_recipe
from common.errors import AttuneError

RecipeOption = Annotated[str, Option("--config", help="Recipe of the runs, if there are any.")]
WeightsOption = Annotated[
    Path | None, Option("--weights", help="Backbones (default: ~/.cache/attune/weights).")
]
HostOption = Annotated[
    str, Option("--host", help="Address to listen on; 0.0.0.0 lets other machines in.")
]
AsIsOption = Annotated[
    bool,
    Option(
        "--as-is",
        help="Take prompts as typed, not in the form of the captions that the model was trained "
        "on; for prompts like the tags of a model whose model.json has tag_form as_is.",
    ),
]


def recipe_or_none(config: str, overrides: list[str] | None) -> Recipe | None:
    """The recipe that `--config` names, if it is given.

    Raises:
        AttuneError: there are overrides without a recipe.
    """
    if overrides and not config:
        raise AttuneError(f"override {overrides[0]!r} needs --config")
    return load_recipe(config, overrides or []) if config else None
