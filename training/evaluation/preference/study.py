"""A study's folder and its plan: all clips, and the order in which each rater hears them.

study.json        the plan below: it says which clip is of which model, and has the raters' tokens
clips/NAME.wav    names are random; neither names nor files reveal the model
answers.sqlite    the answers (`answers.py`)
report/           written by `preference report`
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from common.errors import AttuneError
from training.run.files import to_disk

Side = Literal["left", "right"]
Model = Literal["a", "b"]
Token = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{20,64}$")]
"""Random text, safe in a file name and in an address."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Part):
    """One of the two models."""

    name: str
    clips: str
    """Folder of the original clips."""
    facts: dict[str, Any] = {}
    """Facts that the sidecars of all its clips share: checkpoint, step, settings."""


class Pair(_Part):
    """The two clips of a prompt."""

    prompt: str
    """The prompt as raters read it."""
    seed: int | None
    a: Token
    """File name in `clips/`, without ending."""
    b: Token
    loudness: float | None
    """Loudness of both clips, LUFS; None if one is silent."""
    duration_s: float


class Showing(_Part):
    """A pair as one rater hears it, with names that no other rater's page uses."""

    name: Token
    pair: int = Field(ge=0)
    a_left: bool
    left: Token
    right: Token

    def model(self, side: Side) -> Model:
        """The model on that side."""
        return "a" if (side == "left") == self.a_left else "b"


class Rater(_Part):
    """An invited person, and their pairs in order."""

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
    """Random seed of orders and sides."""
    sample_rate: int
    loudness: float
    pairs: list[Pair] = Field(min_length=1)
    raters: list[Rater] = Field(min_length=1)

    @property
    def answers(self) -> int:
        """Number of answers of a finished study."""
        return len(self.pairs) * len(self.raters)


def read_study(folder: Path) -> Study:
    """Read and check a study's plan.

    Raises:
        AttuneError: no study, or a damaged study: a rater does not have every pair exactly once, a
            name is used twice, a clip is missing, or the clips of a pair differ in size.
    """
    path = folder / "study.json"
    try:
        study = Study.model_validate_json(path.read_bytes())
    except OSError as error:
        raise AttuneError(
            f"{folder}: no study there ({error.strerror}: study.json); "
            "`python -m training preference prepare` writes one"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise AttuneError(f"{path}: damaged at {where or 'its start'}: {first['msg']}") from None
    everything = list(range(len(study.pairs)))
    for number, rater in enumerate(study.raters, 1):
        if sorted(showing.pair for showing in rater.showings) != everything:
            raise AttuneError(f"{path}: damaged: rater {number} does not get every pair once")
    names = [name for pair in study.pairs for name in (pair.a, pair.b)]
    for rater in study.raters:
        names.append(rater.token)
        names += [n for s in rater.showings for n in (s.name, s.left, s.right)]
    if len(set(names)) < len(names):
        raise AttuneError(f"{path}: damaged: a name is there twice")
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
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(study.model_dump_json(indent=1) + "\n", encoding="utf-8")
    to_disk(path)


def clip_path(folder: Path, name: str) -> Path:
    """The file of a clip in a study's folder."""
    return folder / "clips" / f"{name}.wav"


def links(study: Study, address: str) -> list[str]:
    """Invitations, one per rater.

    The token is after a `#`.  Browsers do not send that part to a server, so it is in no log and in
    no referrer.
    """
    return [f"{address.rstrip('/')}/#{rater.token}" for rater in study.raters]


def _size(folder: Path, name: str) -> int:
    path = clip_path(folder, name)
    try:
        return path.stat().st_size
    except OSError as error:
        raise AttuneError(f"{path}: {error.strerror}; a clip of the study is missing") from error
