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
    assert "0" in [label.get_text() for label in units.get_xticklabels()]


def test_many_groups_share_a_name_and_nothing_leaves_the_page() -> None:
    groups = {f"units:layer{i}.0.convolution": [8, 4, 1] for i in range(40)}
    table = pd.DataFrame(
        {"strength": [0.1, 1, 10], "error": 0.1, "units": [320, 160, 40], **groups}
    )
    for shown, expected in ((table, 2), (table.iloc[:, :13], 10)):
        figure = path_plot(shown)
        figure.canvas.draw()
        units = figure.axes[1]
        assert units.get_xscale() == "log"
        legend = units.get_legend()
        assert legend is not None
        assert len(legend.get_texts()) == expected
        box = legend.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert box.y0 > units.bbox.y1 - 1


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
