"""Figures of fitting and training, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
)

from bayesprune.errors import DataError
from bayesprune.reporting._figures import CYCLE, MUTED, STYLE, legend_above, new_figure, numbers


def _stretches(rows: Sequence[Mapping[str, Any]]) -> list[slice]:
    """Cut rows where the stage or round changes or the epoch starts anew."""
    epochs = numbers(rows, "epoch")
    starts = [0]
    for here in range(1, len(rows)):
        before, row = rows[here - 1], rows[here]
        if (
            any(before.get(key) != row.get(key) for key in ("stage", "round"))
            or epochs[here] <= epochs[here - 1]
        ):
            starts.append(here)
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(rows)], strict=True)]


def _curve(axes: Axes, values: np.ndarray, stretch: slice, **style: Any) -> None:
    epoch = np.arange(stretch.start, stretch.stop) + 1
    known = np.isfinite(values[stretch])
    marker = "o" if len(epoch) <= 30 else ""
    axes.plot(epoch[known], values[stretch][known], marker=marker, markersize=3, **style)


def _divide(axes: Axes, stretches: Sequence[slice]) -> None:
    for stretch in stretches[1:]:
        axes.axvline(stretch.start + 0.5, color=MUTED, linewidth=0.7, linestyle=(0, (2, 2)))


@rc_context(STYLE)
def elbo_plot(history: Sequence[Mapping[str, float]]) -> Figure:
    """Draw the ELBO and its two parts against the epoch.

    Rounds (a change of ``round``, or an epoch number that starts anew) follow each other on one
    axis, divided by dashed lines.

    Parameters
    ----------
    history : sequence of mappings
        One row per epoch: ``epoch`` and any of ``elbo``, ``nll``, ``kl`` (per example, in nats),
        optionally ``round``.

    Returns
    -------
    Figure

    Raises
    ------
    DataError
        No row has any of the three.
    """
    titles = {"elbo": "ELBO", "nll": "negative log likelihood", "kl": "KL to the prior"}
    curves = {column: numbers(history, column) for column in titles}
    curves = {column: values for column, values in curves.items() if np.isfinite(values).any()}
    if not curves:
        raise DataError(f"history: expected rows with {[*titles]}, got {len(history)} without")
    stretches = _stretches(history)
    figure = new_figure(height=0.6 + 1.3 * len(curves))
    panels = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (column, values), colour in zip(panels, curves.items(), CYCLE, strict=False):
        for stretch in stretches:
            _curve(axes, values, stretch, color=colour)
        _divide(axes, stretches)
        axes.set_title(titles[column], fontsize=9, fontweight="normal")
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="y")
    rounds = f" ({len(stretches)} rounds)" if len(stretches) > 1 else ""
    panels[-1].set_xlabel(f"epoch{rounds}")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.supylabel("nats per example", fontsize=9)
    return figure


@rc_context(STYLE)
def training_plot(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ("loss", "error")
) -> Figure:
    """Draw training curves over all stages of a run, one panel per column.

    Parameters
    ----------
    rows : sequence of mappings
        One row per epoch in time order: ``stage``, ``epoch`` and numbers, as in ``metrics.csv``;
        blanks and missing cells are skipped.
    columns : sequence of str, default ("loss", "error")
        What to draw.  A positive column that spans more than a factor of ten gets a log axis.

    Returns
    -------
    Figure

    Raises
    ------
    DataError
        No row has a number in any of the columns.
    """
    curves = {column: numbers(rows, column) for column in columns}
    curves = {column: values for column, values in curves.items() if np.isfinite(values).any()}
    if not curves:
        raise DataError(f"rows: expected numbers in {[*columns]}, got {len(rows)} rows without")
    stretches = _stretches(rows)
    stages = list(dict.fromkeys(str(row.get("stage", "training")) for row in rows))
    colours = dict(zip(stages, cycle(CYCLE), strict=False))
    figure = new_figure(height=0.9 + 1.7 * len(curves))
    panels = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (column, values) in zip(panels, curves.items(), strict=True):
        labelled = set()
        for stretch in stretches:
            stage = str(rows[stretch.start].get("stage", "training"))
            label = None if stage in labelled else stage
            labelled.add(stage)
            _curve(axes, values, stretch, color=colours[stage], label=label)
        _divide(axes, stretches)
        low, high = np.nanmin(values), np.nanmax(values)
        if 0 < 10 * low < high:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        if column == "error":
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        elif axes.get_yscale() == "log":
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_ylabel(column)
        axes.grid(axis="y")
    legend_above(panels[0], "Training")
    panels[-1].set_xlabel("epoch, all stages in a row")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure
