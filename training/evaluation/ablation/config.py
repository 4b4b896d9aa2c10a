"""`configs/ablation.yaml`: the rows of Table 1, and profiles that say on what they are trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from common.config import Section, validate
from common.errors import AttuneError


class Figures(Section):
    """What a paper reports."""

    fad: float | None = None
    kl: float | None = None
    clap: float | None = None


class Row(Section):
    """One line of Table 1."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    pool: Literal["max", "average", "none"]
    cfg: float = Field(ge=0, le=1)
    """Share of training without text."""
    weight: float = Field(ge=0)
    """Lambda."""
    loss: Literal["similarity", "contrastive"] = "similarity"
    apply: Literal["cfg", "always"] = "cfg"
    note: str = ""
    """Beside the row, where the three columns do not tell it."""
    paper: Figures | None = None
    """What the paper reports of it; none where it tells the outcome in words alone."""

    def overrides(self) -> tuple[str, ...]:
        """Of a recipe."""
        pool = () if self.pool == "none" else (f"lm.rr.pool={self.pool}",)
        return (
            f"lm.cfg.dropout={self.cfg:g}",
            f"lm.rr.weight={self.weight:g}",
            f"lm.rr.loss={self.loss}",
            f"lm.rr.apply={self.apply}",
            *pool,
        )


class Profile(Section):
    """What the rows are trained and measured on."""

    recipe: str
    """File, from this one's folder."""
    task: Literal["sfx", "music"] = "sfx"
    """Sound effects make Tables 1 and 3, music Table 2."""
    rows: tuple[str, ...] = ()
    """Those of them; none for all."""
    overrides: tuple[str, ...] = ()
    """Of the recipe, for every row."""
    seeds: tuple[int, ...] = Field(min_length=1)
    """Of initialization, order and draws; the same for every row, so that rows differ in pairs."""
    more_seeds: tuple[int, ...] = ()
    """Further ones of the two rows that are tested against each other."""
    split: str = "test"
    """Clips whose prompts are asked for and which distances are measured to."""
    datasets: tuple[str, ...] = ()
    """Of that split; none for all. The paper's tables stand on one."""
    clips_per_prompt: int = Field(default=1, ge=1)
    """Generated for each of these clips, with seeds of their own."""


class Published(Section):
    """A row of another model, as the paper quotes it."""

    name: str
    task: Literal["sfx", "music"]
    figures: Figures


class AblationConfig(Section):
    """The whole file."""

    rows: tuple[Row, ...] = Field(min_length=2)
    regularized: str
    """The row that is the paper's method."""
    baseline: str
    """The row that it is tested against."""
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
        """In the file's order."""
        return [row for row in self.rows if not profile.rows or row.name in profile.rows]

    def seeds_of(self, profile: Profile, row: Row) -> list[int]:
        """All that a row is trained with."""
        tested = row.name in (self.regularized, self.baseline)
        return list(dict.fromkeys(profile.seeds + (profile.more_seeds if tested else ())))


def load_ablation(path: Path) -> AblationConfig:
    """Read the file.

    Raises:
        AttuneError: it is missing, no YAML, or has a wrong key or value.
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
