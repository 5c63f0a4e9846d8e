"""Figures of grids."""

import numpy as np
import pandas as pd
import pytest

from bayesprune.errors import DataError
from bayesprune.reporting import path_plot, sensitivity_plot


def test_a_path_shows_error_and_the_share_of_units_left() -> None:
    table = pd.DataFrame(
        {
            "strength": [0.0, 0.1, 10.0],
            "error": [0.1, 0.2, 0.5],
            "units": [12, 6, 1],
            "units:a": [8, 4, 1],
            "units:b": [4, 2, 0],
        }
    )
    figure = path_plot(table)
    figure.savefig("/dev/null", format="png")
    error, units = figure.axes
    np.testing.assert_allclose(error.lines[0].get_xydata(), [[0, 0.1], [0.1, 0.2], [10, 0.5]])
    assert [line.get_label() for line in units.lines] == ["a", "b"]
    np.testing.assert_allclose(units.lines[1].get_ydata(), [1, 0.5, 0])
    assert units.get_xscale() == "symlog"


def test_sensitivity_has_a_curve_per_value() -> None:
    rows = [(s, t, 0.1 + s + t, 9) for s in (2.0, 1.0) for t in (0.0, 0.5)]
    table = pd.DataFrame(rows, columns=["strength", "threshold", "error", "units"])
    error, units = sensitivity_plot(table).axes
    assert [line.get_label() for line in error.lines] == ["threshold 0", "threshold 0.5"]
    np.testing.assert_allclose(error.lines[1].get_xydata(), [[1, 1.6], [2, 2.6]])
    assert units.get_xlabel() == "strength"
    assert units.get_xscale() == "linear"


@pytest.mark.parametrize("draw", [path_plot, sensitivity_plot])
def test_missing_columns_are_named(draw) -> None:
    with pytest.raises(DataError, match="expected rows with .*'error', 'units'"):
        draw(pd.DataFrame({"strength": [1.0]}))
