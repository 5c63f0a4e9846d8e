"""Figures of agreement hold what they are of."""

import math

import pandas as pd
import pytest

from bayesprune.errors import DataError, PlanError
from bayesprune.reporting import agreement_plot


@pytest.fixture
def table() -> pd.DataFrame:
    rows = [
        ("a", "up", "down", 4, -1.0, -1.0),
        ("b", "up", "down", 3, -1 / 3, -0.5),
        ("a", "up", "some", 4, 2 / 3, 0.8),
        ("a", "down", "some", 4, -2 / 3, -0.8),
    ]
    columns = ["group", "first", "second", "units", "kendall", "spearman"]
    return pd.DataFrame(rows, columns=columns)


def test_cells_show_the_table(table) -> None:
    figure = agreement_plot(table, "a")
    axes, bar = figure.axes
    assert [t.get_text() for t in axes.get_xticklabels()] == ["up", "down"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["down", "some"]
    assert axes.get_title("left") == "a"
    cells = axes.images[0].get_array()
    assert cells[0, 0] == pytest.approx(-1)
    assert cells[1].tolist() == pytest.approx([0.8, -0.8])
    assert cells.mask.tolist() == [[False, True], [False, False]]
    assert sorted(t.get_text() for t in axes.texts) == ["-.80", "-1", ".80"]
    assert "Spearman" in bar.get_ylabel()
    kendall = agreement_plot(table, "a", "kendall")
    assert sorted(t.get_text() for t in kendall.axes[0].texts) == ["-.67", "-1", ".67"]


def test_unknown_agreement_is_hatched(table) -> None:
    axes = agreement_plot(table[:1].assign(spearman=math.nan), "a").axes[0]
    assert [patch.get_hatch() for patch in axes.patches] == ["////"]
    assert not axes.texts


def test_figure_refuses(table) -> None:
    with pytest.raises(PlanError, match=r"expected a group of the table \['a', 'b'\], got 'c'"):
        agreement_plot(table, "c")
    with pytest.raises(DataError, match="expected 'spearman' or 'kendall', got 'pearson'"):
        agreement_plot(table, "a", "pearson")
