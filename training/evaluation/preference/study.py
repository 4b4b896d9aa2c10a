"""A study's folder, and its plan: which clips there are, and who hears them in which order.

study.json        the plan below: it tells the sides apart, and holds the raters' tokens
clips/NAME.wav    names are random; nothing in them or in the files tells the model
answers.sqlite    what was answered (`answers.py`)
report/           made by `preference report`
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from common.errors import AttuneError

Side = Literal["left", "right"]
Model = Literal["a", "b"]
Token = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{20,64}$")]
"""Random, safe in a file name and in an address."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Part):
    """One of the two models."""

    name: str
    clips: str
    """Folder that its clips came from."""
    facts: dict[str, Any] = {}
    """What the sidecars of all its clips say alike: checkpoint, step, settings."""


class Pair(_Part):
    """The two clips of a prompt."""

    prompt: str
    """As raters read it."""
    seed: int | None
    a: Token
    """File name in `clips/`, without ending."""
    b: Token
    loudness: float | None
    """LUFS of both; None where one is silent."""
    duration_s: float


class Showing(_Part):
    """A pair as one rater gets it, under names that no other rater's page uses."""

    name: Token
    pair: int = Field(ge=0)
    a_left: bool
    left: Token
    right: Token

    def model(self, side: Side) -> Model:
        """Which model is on that side."""
        return "a" if (side == "left") == self.a_left else "b"


class Rater(_Part):
    """Someone who was invited, and their pairs in order."""

    token: Token
    showings: list[Showing]


class Study(_Part):
    """The content of `study.json`."""

    version: Literal[1] = 1
    id: Token
    created: str
    a: Source
    b: Source
    seed: int
    """Of orders and sides."""
    sample_rate: int
    loudness: float
    pairs: list[Pair] = Field(min_length=1)
    raters: list[Rater] = Field(min_length=1)

    @property
    def answers(self) -> int:
        """Answers of a finished study."""
        return len(self.pairs) * len(self.raters)


def read_study(folder: Path) -> Study:
    """Read and check a study's plan.

    Raises:
        AttuneError: no study there, or one that was damaged: every pair once per rater, names of
            their own, clips in place and of one size within a pair.
    """
    path = folder / "study.json"
    try:
        study = Study.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise AttuneError(
            f"{folder}: no study there; `python -m training preference prepare` makes one"
        ) from None
    except OSError as error:
        raise AttuneError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise AttuneError(f"{path}: damaged at {where or 'its start'}: {first['msg']}") from None
    everything = list(range(len(study.pairs)))
    for number, rater in enumerate(study.raters, 1):
        if sorted(showing.pair for showing in rater.showings) != everything:
            raise AttuneError(f"{path}: damaged: rater {number} does not get every pair once")
    names = list(_names(study))
    if len(set(names)) < len(names):
        raise AttuneError(f"{path}: damaged: a name stands there twice")
    for pair in study.pairs:
        if _size(folder, pair.a) != _size(folder, pair.b):
            raise AttuneError(
                f"{folder}: the two clips of {pair.prompt!r} differ in size; prepare the study "
                "again under another name"
            )
    return study


def write_study(folder: Path, study: Study) -> None:
    """Write `study.json` so that only its owner can read it."""
    path = folder / "study.json"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(json.dumps(study.model_dump(), indent=1, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def clip_path(folder: Path, name: str) -> Path:
    """Of a clip in a study's folder."""
    return folder / "clips" / f"{name}.wav"


def links(study: Study, address: str) -> list[str]:
    """Invitations, one per rater.

    The token stands behind a `#`: browsers send that part to no server, so it is in no server's
    log and in no other page's referrer.
    """
    return [f"{address.rstrip('/')}/#{rater.token}" for rater in study.raters]


def _names(study: Study) -> Iterator[str]:
    for pair in study.pairs:
        yield from (pair.a, pair.b)
    for rater in study.raters:
        yield rater.token
        for showing in rater.showings:
            yield from (showing.name, showing.left, showing.right)


def _size(folder: Path, name: str) -> int:
    path = clip_path(folder, name)
    try:
        return path.stat().st_size
    except OSError as error:
        raise AttuneError(f"{path}: {error.strerror}; the study lacks a clip") from error
