"""Checks of arguments: what passes, and what is said of the rest."""

import math
from typing import Literal

import numpy as np
import pytest

from bayesprune._checks import check_choice, check_integer, check_number
from bayesprune.errors import ConfigError, PlanError


@pytest.mark.parametrize("value", [2, 5])
def test_integers_within_bounds_pass(value) -> None:
    check_integer("n", value, 2, 5)


@pytest.mark.parametrize("value", [1, 6, True, 3.0, math.nan, "3", None])
def test_other_integers_are_refused(value) -> None:
    with pytest.raises(ConfigError, match=f"^n: expected an integer from 2 to 5, got {value!r}$"):
        check_integer("n", value, 2, 5)
    if value != 6:
        with pytest.raises(PlanError, match="^n: expected an integer of at least 4, got"):
            check_integer("n", value, 4, error=PlanError)


BOUNDS = [
    ({"low": 0}, "a finite number of at least 0", [0, 2.5, np.float64(7)], [-1e-9]),
    ({"above": 0}, "a finite number above 0", [1e-9, 3], [0, 0.0]),
    ({"low": 0, "high": 1}, "a number in [0, 1]", [0, 1], [-1, 1.1]),
    ({"low": 0, "below": 1}, "a number in [0, 1)", [0, 0.99], [1, 1.0]),
    ({"above": 0, "high": 1}, "a number in (0, 1]", [1, 0.01], [0, 2]),
    ({"above": 0, "below": 1}, "a number in (0, 1)", [0.5], [0, 1]),
]


@pytest.mark.parametrize(("bounds", "expected", "good", "bad"), BOUNDS)
def test_numbers_are_finite_and_within_bounds(bounds, expected, good, bad) -> None:
    for value in good:
        check_number("x", value, **bounds)
    for value in [*bad, math.nan, math.inf, True, "0.5", None]:
        with pytest.raises(ConfigError) as error:
            check_number("x", value, **bounds)
        assert str(error.value) == f"x: expected {expected}, got {value!r}"


def test_choices() -> None:
    check_choice("how", "l2", Literal["l2", "none"])
    with pytest.raises(ConfigError, match="^how: expected one of l2, none, got 'l7'$"):
        check_choice("how", "l7", Literal["l2", "none"])
