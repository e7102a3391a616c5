"""Turns pydantic's complaints into one line: the dotted path, the value and the nearest valid key."""

from __future__ import annotations

import difflib
import types
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

TAGGED = {
    "corpus": ("pysource", "synthetic", "text", "tokens", "hf", "copy", "selective-copy", "images"),
    "tokenizer": ("bytes", "bpe", "chars", "file"),
}
"""Fields that hold one of several tables, and the kinds of those."""


def validation_line(error: ValidationError, model: type[BaseModel], source: str) -> str:
    """Return the first complaint of `error` as one line, and how many more there are.

    Args:
        error: what pydantic raised while validating `model`.
        model: the class that was validated.
        source: where the values came from (a file, an option), put first.
    """
    # A misspelt key also leaves its right spelling missing: the former is what the user can see.
    complaints = sorted(error.errors(include_url=False), key=lambda c: c["type"] != "extra_forbidden")
    first = complaints[0]
    loc = _keys(first["loc"])
    path = ".".join(str(part) for part in loc) or "(top level)"
    if first["type"] == "extra_forbidden":
        valid = _fields_at(model, loc[:-1])
        text = f"unknown key '{path}'" + nearest(str(loc[-1]), valid)
    elif first["type"] == "missing":
        text = f"key '{path}' is missing"
    else:
        message = first["msg"].removeprefix("Value error, ")
        value = first["input"]
        shown = f" = {value!r}" if isinstance(value, str | int | float | bool) else ""
        text = message if path == "(top level)" else f"{path}{shown}: {message}"
    more = f" (and {len(complaints) - 1} more)" if len(complaints) > 1 else ""
    return " ".join(f"{source}: {text}{more}".split())


def nearest(written: str, valid: list[str]) -> str:
    """A hint for a misspelt name: the closest valid one, or all of them."""
    close = difflib.get_close_matches(written, valid, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; valid: {', '.join(sorted(valid))}" if valid else ""


def _keys(loc: tuple[int | str, ...]) -> list[int | str]:
    """The keys a user wrote: pydantic adds validators, union members and the tag of a table with `kind`."""
    keys: list[int | str] = []
    for part in loc:
        added = isinstance(part, str) and (part.startswith(("function-", "lax-or-strict")) or "[" in part)
        tag = bool(keys) and keys[-1] in TAGGED and part in TAGGED[str(keys[-1])]
        if not added and not tag:
            keys.append(part)
    return keys


def _fields_at(model: type[BaseModel], loc: list[Any]) -> list[str]:
    current: list[type[BaseModel]] = [model]
    for part in loc:
        inner: list[type[BaseModel]] = []
        for cls in current:
            if part in cls.model_fields:
                inner += _models_in(cls.model_fields[part].annotation)
        current = inner or current
    return sorted({name for cls in current for name in cls.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType) or get_args(annotation):
        return [m for arg in get_args(annotation) for m in _models_in(arg)]
    return []
