"""Objects as plain data: what a config file holds of them."""

from __future__ import annotations

import dataclasses
import html
import importlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from bayesprune.errors import ConfigError

T = TypeVar("T")


def init_args(value: Any) -> dict[str, Any]:
    """The constructor arguments of an object that stores each under the argument's name."""
    names = list(inspect.signature(type(value).__init__).parameters)[1:]
    return {name: getattr(value, name) for name in names if name not in ("args", "kwargs")}


def describe(value: Any) -> Any:
    """A tree of dicts, lists and scalars that jsonargparse builds the value from again.

    Data classes become dicts of their fields, functions their import path; other objects
    ``class_path`` and ``init_args``.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if inspect.isfunction(value):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, dict):
        return {key: describe(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not _has_family(value):
        return {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
    family = type(value)
    return {
        "class_path": f"{family.__module__}.{family.__qualname__}",
        "init_args": describe(init_args(value)),
    }


def build(description: Any, kind: type[T]) -> T:
    """What `describe` described; its own arguments are plain values or of that kind as well.

    Raises TypeError if it is of another kind, so that a file cannot have just anything called, and
    what the class raises.
    """
    value = _value(description, kind)
    if not isinstance(value, kind):
        raise TypeError(f"expected a {kind.__name__}, got {description!r}")
    return value


def _value(description: Any, kind: type) -> Any:
    if isinstance(description, list):
        return [_value(item, kind) for item in description]
    if not isinstance(description, dict):
        return description
    values = {key: _value(item, kind) for key, item in description.items()}
    if set(values) != {"class_path", "init_args"}:
        return values
    module, _, name = str(values["class_path"]).rpartition(".")
    family = getattr(importlib.import_module(module), name)
    if not (isinstance(family, type) and issubclass(family, kind)):
        raise TypeError(f"{values['class_path']} is not a {kind.__name__}")
    return family(**values["init_args"])


def imported(field: str, path: str, name: str) -> Callable[..., Any]:
    """A class or function of the user's own; raises ConfigError naming the field of the config."""
    try:
        module = importlib.import_module(path)
    except Exception as error:  # whatever the user's module does
        kind = type(error).__name__
        raise ConfigError(f"{field}: cannot import {path!r}: {kind}: {error}") from error
    found = getattr(module, name, None)
    if not callable(found):
        expected = f"a class or function {name!r} in {path!r}"
        raise ConfigError(f"{field}: expected {expected}, got {found}")
    return found


def html_table(head: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> str:
    """A table for notebooks; cells are escaped."""

    def line(cells: Sequence[Any], kind: str) -> str:
        inner = "".join(f"<{kind}>{html.escape(str(cell))}</{kind}>" for cell in cells)
        return f"<tr>{inner}</tr>"

    caption = f"<caption>{html.escape(title)}</caption>" if title else ""
    body = "".join(line(row, "td") for row in rows)
    return f"<table>{caption}{line(head, 'th')}{body}</table>"


def _has_family(value: Any) -> bool:
    """Whether a data class is one of several under an abstract class."""
    return any(inspect.isabstract(base) for base in type(value).__mro__[1:])
