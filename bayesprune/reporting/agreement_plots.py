"""How far the rankings of several methods agree."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bayesprune.errors import DataError, PlanError
from bayesprune.reporting._figures import INK, KEPT, PALE, REMOVED, STYLE, new_figure, shorten

if TYPE_CHECKING:
    import pandas as pd


@rc_context(STYLE)
def agreement_plot(table: pd.DataFrame, group: str, measure: str = "spearman") -> Figure:
    """Draw how far the rankings of one group agree, method by method.

    Blue pairs agree, orange ones order the units the other way round. Hatched cells are unknown,
    for one of the methods gives all units the same score.

    Parameters
    ----------
    table : DataFrame
        From `bayesprune.diagnostics.rank_agreement`.
    group : str
    measure : {"spearman", "kendall"}

    Returns
    -------
    Figure

    Raises
    ------
    PlanError
        The table has no such group.
    DataError
        The table has no such measure.
    """
    rows = table[table["group"] == group]
    if rows.empty:
        known = list(dict.fromkeys(table["group"]))
        raise PlanError(f"expected a group of the table {known}, got {group!r}")
    if measure not in ("spearman", "kendall"):
        raise DataError(f"measure: expected 'spearman' or 'kendall', got {measure!r}")
    names = list(dict.fromkeys([*rows["first"], *rows["second"]]))
    places = {name: place for place, name in enumerate(names)}
    square = np.full((len(names), len(names)), math.nan)
    for first, second, value in zip(rows["first"], rows["second"], rows[measure], strict=True):
        square[places[second], places[first]] = value
    lower = square[1:, :-1]
    side = len(names) - 1
    figure = new_figure(height=1.9 + 2.6 * min(1.0, side / 8))
    axes = figure.subplots()
    axes.set_facecolor("white")
    colours = LinearSegmentedColormap.from_list("agreement", [REMOVED, "#F7F7F7", KEPT])
    shown = np.ma.masked_invalid(lower)
    picture = axes.imshow(shown, cmap=colours, vmin=-1, vmax=1, aspect="auto")
    for row in range(side):
        for column in range(row + 1):
            value = lower[row, column]
            if math.isnan(value):
                corner = (column - 0.5, row - 0.5)
                axes.add_patch(Rectangle(corner, 1, 1, fill=False, hatch="////", edgecolor=PALE))
            elif side <= 16:
                ink = "white" if abs(value) > 0.6 else INK
                text = f"{round(value, 2) + 0.0:.2f}".replace("0.", ".").replace("1.00", "1")
                axes.text(column, row, text, ha="center", va="center", fontsize=6, color=ink)
    axes.set_xticks(range(side), [shorten(name, 22) for name in names[:-1]], rotation=90)
    axes.set_yticks(range(side), [shorten(name, 22) for name in names[1:]])
    axes.tick_params(length=0, labelsize=7.5)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(shorten(group, 30))
    title = {"spearman": "Spearman's ρ", "kendall": "Kendall's τ"}[measure]
    bar = figure.colorbar(picture, ax=axes, shrink=0.7, aspect=18, ticks=[-1, 0, 1])
    bar.set_label(title, fontsize=8)
    bar.ax.tick_params(labelsize=7.5)
    return figure
