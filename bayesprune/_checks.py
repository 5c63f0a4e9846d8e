"""Checks of arguments, each with a message that names the argument and says what was expected."""

from __future__ import annotations

import math
from typing import Any, get_args

from bayesprune.errors import BayespruneError, ConfigError


def check_integer(
    name: str,
    value: Any,
    least: int = 1,
    most: int | None = None,
    *,
    error: type[BayespruneError] = ConfigError,
) -> None:
    """Raise `error` unless `value` is an integer, no bool, from `least` to `most`."""
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if not (is_integer and value >= least and (most is None or value <= most)):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise error(f"{name}: expected an integer {bounds}, got {value!r}")


def check_number(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    above: float = -math.inf,
    high: float = math.inf,
    below: float = math.inf,
) -> None:
    """Raise ConfigError unless `value` is a finite number, no bool, within bounds.

    Parameters
    ----------
    name : str
        Of the argument, for messages.
    value : Any
    low, high : float
        Bounds that the number may reach.
    above, below : float
        Bounds that it may not reach.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and low <= value <= high and above < value < below):
        least, most = max(low, above), min(high, below)
        if most < math.inf:
            left, right = "[" if low > above else "(", "]" if high < below else ")"
            expected = f"a number in {left}{least:g}, {most:g}{right}"
        else:
            expected = f"a finite number {'of at least' if low > above else 'above'} {least:g}"
        raise ConfigError(f"{name}: expected {expected}, got {value!r}")


def check_choice(name: str, value: Any, literal: Any) -> None:
    """Raise ConfigError unless `value` is one of the choices of a `typing.Literal`."""
    choices = get_args(literal)
    if value not in choices:
        raise ConfigError(f"{name}: expected one of {', '.join(map(str, choices))}, got {value!r}")
