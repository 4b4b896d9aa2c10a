"""What `key.sub=value` of a command line means: the type of the key's field decides.

Text arrives as typed (`name=2024`, `root=/x/takes #2`); everything else is YAML.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from yaml import YAMLError

_NOTHING = ("", "null", "~")
_QUOTES = ("'", '"')
_WHOLE = re.compile(r"[+-]?[0-9]+")


def types_at(annotation: Any, keys: Sequence[str]) -> list[Any]:
    """The types of the field that keys lead to from a type; none if there is no such field.

    Several for a union, or behind a union of sections; `[Any]` where values have no type.
    """
    found = _members(annotation)
    for key in keys:
        found = [one for node in found for inner in _inside(node, key) for one in _members(inner)]
    return found


def typed_value(types: Sequence[Any], text: str) -> Any:
    """What the text of an override is for a field of these types.

    A field of text takes it as typed, without YAML's quotes around it. A field that may also be
    something else takes text that is nothing else (`float | Literal["auto"]`). An optional field
    takes `null` as None.

    Raises:
        YAMLError: the field takes no text, and this is not valid YAML.
    """
    if (int in types or float in types) and _WHOLE.fullmatch(text):  # YAML would read "010" as 8
        return int(text)
    literals = [value for one in types if get_origin(one) is Literal for value in get_args(one)]
    if text in literals:
        return text
    if NoneType in types and text in _NOTHING:
        return None
    if not (str in types or Path in types or any(isinstance(one, str) for one in literals)):
        return yaml.safe_load(text)
    value = _yaml_or_text(text)
    if any(_fits(value, one) for one in types) or _is_quoted(text, value):
        return value
    return text


def untyped_value(text: str) -> Any:
    """What the text of an override is where the field is not known: YAML, else text."""
    value = _yaml_or_text(text)
    known = isinstance(value, str | bool | int | float | list | dict | NoneType)
    return value if known else text  # YAML also has dates


def _yaml_or_text(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except YAMLError:
        return text


def _is_quoted(text: str, value: Any) -> bool:
    return isinstance(value, str) and text[:1] in _QUOTES and text[-1] == text[0]


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a kind that is not text."""
    if isinstance(value, list | dict):
        return kind not in (str, Path, NoneType) and get_origin(kind) is not Literal
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float) and kind in (int, float)


def _members(annotation: Any) -> list[Any]:
    """The members of a union, or the one type that an annotation is."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [member for one in get_args(annotation) for member in _members(one)]
    return [annotation]


def _inside(kind: Any, key: str) -> list[Any]:
    """The types of a section's field, or of a container's items."""
    origin = get_origin(kind)
    if kind is Any:
        return [Any]
    if origin is None and isinstance(kind, type) and issubclass(kind, BaseModel):
        field = kind.model_fields.get(key)
        return [field.annotation] if field else []
    items = get_args(kind)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        items = items[1:]
    return [] if origin is Literal else [item for item in items if item is not ...]
