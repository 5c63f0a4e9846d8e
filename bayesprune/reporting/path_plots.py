"""Figures of sparse training over a grid of settings."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

from bayesprune.errors import DataError
from bayesprune.reporting._figures import (
    MUTED,
    STYLE,
    curve_style,
    legend_above,
    new_figure,
    shorten,
)

_MAX_NAMED = 12
"""Groups that get a curve with a name."""


def _require(table: pd.DataFrame, columns: list[str]) -> None:
    missing = [name for name in columns if name not in table]
    if missing or table.empty:
        raise DataError(f"table: expected rows with {columns}, got {len(table)} without {missing}")


def _scale(axes: Axes, values: np.ndarray) -> None:
    """Logarithmic where values span a factor of ten, with room for 0 if it is among them."""
    above = values[values > 0]
    if not len(above) or above.max() < 10 * above.min():
        return
    if len(above) < len(values):
        axes.set_xscale("symlog", linthresh=float(above.min()))
    else:
        axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


@rc_context(STYLE)
def path_plot(table: pd.DataFrame) -> Figure:
    """Draw held-out error and the units that are left against the strength of a penalty.

    Parameters
    ----------
    table : DataFrame
        From `bayesprune.penalties.regularisation_path`.

    Returns
    -------
    Figure

    Raises
    ------
    DataError
        If a column is missing or there is no row.
    """
    _require(table, ["strength", "error", "units"])
    strengths = table["strength"].to_numpy(float)
    figure = new_figure(height=4.2)
    error, units = figure.subplots(2, 1, sharex=True)
    error.plot(strengths, table["error"], **curve_style(0))
    error.set_title("held-out error")
    error.yaxis.set_major_formatter(PercentFormatter(1))
    groups = [str(name) for name in table.columns if str(name).startswith("units:")]
    few = len(groups) <= _MAX_NAMED
    for index, name in enumerate(groups):
        left = table[name] / max(table[name].max(), 1)
        if few:
            label = shorten(name.removeprefix("units:"), 16)
            units.plot(strengths, left, label=label, **curve_style(index))
        else:
            label = f"each of {len(groups)} groups" if index == 0 else None
            units.plot(strengths, left, label=label, color=MUTED, linewidth=0.6, alpha=0.5)
    if not few:
        units.plot(strengths, table["units"] / table["units"].max(), label="all", **curve_style(0))
    rows = legend_above(units, "units left, of the most in the path")
    figure.set_figheight(figure.get_figheight() + 0.17 * rows)
    units.yaxis.set_major_formatter(PercentFormatter(1))
    units.set_xlabel("strength")
    _scale(units, strengths)
    for axes in (error, units):
        axes.grid(axis="y")
    return figure


@rc_context(STYLE)
def sensitivity_plot(table: pd.DataFrame, x: str = "strength", by: str = "threshold") -> Figure:
    """Draw held-out error and the units that are left for two settings of a penalty.

    Parameters
    ----------
    table : DataFrame
        From `bayesprune.penalties.sensitivity`.
    x, by : str
        The setting along the axis, and the one that tells curves apart.

    Returns
    -------
    Figure

    Raises
    ------
    DataError
        If a column is missing or there is no row.
    """
    _require(table, [x, by, "error", "units"])
    figure = new_figure(height=4.2)
    panels = figure.subplots(2, 1, sharex=True)
    for index, (value, rows) in enumerate(table.sort_values(x).groupby(by)):
        for axes, column in zip(panels, ("error", "units"), strict=True):
            x_values, y_values = rows[x].to_numpy(float), rows[column].to_numpy(float)
            axes.plot(x_values, y_values, label=f"{by} {value:g}", **curve_style(index))
    legend_rows = legend_above(panels[0], "held-out error")
    figure.set_figheight(figure.get_figheight() + 0.17 * legend_rows)
    panels[0].yaxis.set_major_formatter(PercentFormatter(1))
    panels[1].set_title("units left")
    panels[1].set_ylim(bottom=0)
    panels[1].set_xlabel(x)
    _scale(panels[1], table[x].to_numpy(float))
    for axes in panels:
        axes.grid(axis="y")
    return figure
