"""Figures of sparse training over a grid of settings."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from bayesprune.errors import DataError
from bayesprune.reporting.plots import _CYCLE, _MARKERS, _STYLE, _figure, _legend_above, _shorten


def _require(table: pd.DataFrame, columns: list[str]) -> None:
    missing = [name for name in columns if name not in table]
    if missing or table.empty:
        raise DataError(f"table: expected rows with {columns}, got {len(table)} without {missing}")


def _scale(axes: Axes, values: np.ndarray) -> None:
    """Logarithmic, with room for 0."""
    above = values[values > 0]
    if len(above) and above.max() >= 10 * above.min():
        axes.set_xscale("symlog", linthresh=float(above.min()))


@rc_context(_STYLE)
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
    figure = _figure(height=4.2)
    error, units = figure.subplots(2, 1, sharex=True)
    error.plot(strengths, table["error"], color=_CYCLE[0], marker="o", markersize=4)
    error.set_title("held-out error")
    error.yaxis.set_major_formatter(PercentFormatter(1))
    groups = [str(name) for name in table.columns if str(name).startswith("units:")]
    for index, name in enumerate(groups):
        first = max(table[name].max(), 1)
        units.plot(
            strengths,
            table[name] / first,
            color=_CYCLE[index % len(_CYCLE)],
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=4,
            label=_shorten(name.removeprefix("units:"), 16),
        )
    _legend_above(units, "units left, of the most in the path")
    units.yaxis.set_major_formatter(PercentFormatter(1))
    units.set_xlabel("strength")
    _scale(units, strengths)
    for axes in (error, units):
        axes.grid(axis="y")
    return figure


@rc_context(_STYLE)
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
    figure = _figure(height=4.2)
    panels = figure.subplots(2, 1, sharex=True)
    for index, (value, rows) in enumerate(table.sort_values(x).groupby(by)):
        style = {
            "color": _CYCLE[index % len(_CYCLE)],
            "marker": _MARKERS[index % len(_MARKERS)],
            "markersize": 4,
            "label": f"{by} {value:g}",
        }
        for axes, column in zip(panels, ("error", "units"), strict=True):
            axes.plot(rows[x].to_numpy(float), rows[column].to_numpy(float), **style)
    _legend_above(panels[0], "held-out error")
    panels[0].yaxis.set_major_formatter(PercentFormatter(1))
    panels[1].set_title("units left")
    panels[1].set_ylim(bottom=0)
    panels[1].set_xlabel(x)
    _scale(panels[1], table[x].to_numpy(float))
    for axes in panels:
        axes.grid(axis="y")
    return figure
