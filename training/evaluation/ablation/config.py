"""`configs/ablation.yaml`: the rows of Table 1, and profiles of data, seeds and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from common.config import Section, validate
from common.errors import AttuneError


class Figures(Section):
    """The metrics that a paper reports."""

    fad: float | None = None
    kl: float | None = None
    clap: float | None = None


class Row(Section):
    """One line of Table 1."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    pool: Literal["max", "average", "none"]
    cfg: float = Field(ge=0, le=1)
    """Share of training steps without text."""
    weight: float = Field(ge=0)
    """Weight of the representation regularization (lambda in the paper)."""
    loss: Literal["similarity", "contrastive"] = "similarity"
    apply: Literal["cfg", "always"] = "cfg"
    note: str = ""
    """Shown next to the row, if pool, CFG and lambda do not identify it."""
    paper: Figures | None = None
    """The paper's values; None if the paper describes the result only in words."""

    def overrides(self) -> tuple[str, ...]:
        """The row as overrides of a recipe."""
        pool = () if self.pool == "none" else (f"lm.rr.pool={self.pool}",)
        rr = f"lm.rr.weight={self.weight:g}", f"lm.rr.loss={self.loss}", f"lm.rr.apply={self.apply}"
        return (f"lm.cfg.dropout={self.cfg:g}", *rr, *pool)


class Profile(Section):
    """The data and settings with which the rows are trained and measured."""

    recipe: str
    """File of the recipe, relative to this file."""
    task: Literal["sfx", "music"] = "sfx"
    """Sound effects give Tables 1 and 3, music gives Table 2."""
    rows: tuple[str, ...] = ()
    """Names of the rows to train; all rows if empty."""
    overrides: tuple[str, ...] = ()
    """Overrides of the recipe, for every row."""
    seeds: tuple[int, ...] = Field(min_length=1)
    """Random seeds of training; the same for every row, so that rows are compared in pairs."""
    more_seeds: tuple[int, ...] = ()
    """Further seeds of the two rows that are tested against each other."""
    split: str = "test"
    """Split with the prompts and the real clips of the evaluation."""
    datasets: tuple[str, ...] = ()
    """Datasets of that split; all datasets if empty. The paper's tables use one dataset."""
    clips_per_prompt: int = Field(default=1, ge=1)
    """Number of clips generated for each real clip, with different seeds."""


class Published(Section):
    """The values of another model, as the paper quotes them."""

    name: str
    task: Literal["sfx", "music"]
    figures: Figures


class AblationConfig(Section):
    """The content of the file."""

    rows: tuple[Row, ...] = Field(min_length=2)
    regularized: str
    """Name of the row with the paper's method."""
    baseline: str
    """Name of the row that it is tested against."""
    published: tuple[Published, ...] = ()
    profiles: dict[str, Profile] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_known(self) -> AblationConfig:
        names = [row.name for row in self.rows]
        if len(set(names)) < len(names):
            raise ValueError("two rows have the same name")
        asked = [self.regularized, self.baseline]
        asked += [name for profile in self.profiles.values() for name in profile.rows]
        if unknown := [name for name in asked if name not in names]:
            raise ValueError(f"no row {unknown[0]!r}; there are {', '.join(names)}")
        return self

    def rows_of(self, profile: Profile) -> list[Row]:
        """The rows of a profile, in the order of the file."""
        return [row for row in self.rows if not profile.rows or row.name in profile.rows]

    def seeds_of(self, profile: Profile, row: Row) -> list[int]:
        """All seeds that a row is trained with."""
        tested = row.name in (self.regularized, self.baseline)
        return list(dict.fromkeys(profile.seeds + (profile.more_seeds if tested else ())))


def load_ablation(path: Path) -> AblationConfig:
    """Read the file.

    Raises:
        AttuneError: the file is missing, is not YAML, or has a wrong key or value.
    """
    try:
        tree: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AttuneError(f"config {path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise AttuneError(f"config {path}: not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise AttuneError(f"config {path}: expected a mapping with rows and profiles")
    return validate(AblationConfig, tree, str(path))
