"""Figures of what runs leave: widths, calibration, and error against cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
)
from scipy.stats import binomtest

from bayesprune.errors import DataError
from bayesprune.reporting._figures import (
    INK,
    KEPT,
    MUTED,
    PALE,
    STYLE,
    curve_style,
    format_count,
    legend_above,
    new_figure,
    numbers,
    shorten,
)


@rc_context(STYLE)
def kept_ladder(architecture: Mapping[str, Mapping[str, int]]) -> Figure:
    """Draw how much of each group is kept, in network order.

    Parameters
    ----------
    architecture : mapping of str to {"kept": int, "of": int}
        Channels kept and channels before pruning, per group.

    Returns
    -------
    Figure

    Raises
    ------
    DataError
        There is no group.
    """
    if not architecture:
        raise DataError("architecture: expected at least one group, got none")
    figure = new_figure(height=0.75 + 0.27 * len(architecture))
    axes = figure.subplots()
    rows = np.arange(len(architecture))
    kept = np.array([group["kept"] for group in architecture.values()])
    size = np.array([group["of"] for group in architecture.values()])
    axes.barh(rows, np.ones(len(rows)), height=0.62, color=PALE)
    axes.barh(rows, kept / size, height=0.62, color=KEPT)
    for row, group in enumerate(architecture.values()):
        axes.text(1.02, row, f"{group['kept']} / {group['of']}", va="center", ha="left")
    axes.set_yticks(rows, [shorten(name, 24) for name in architecture])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("channels kept")
    return figure


@rc_context(STYLE)
def reliability_plot(networks: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Draw accuracy against confidence, and how many examples there are of each confidence.

    On the diagonal, a network is right as often as it says. Bars are 95% intervals (Wilson, JASA
    1927); bins without an example are left out.

    Parameters
    ----------
    networks : mapping of str to mapping
        By the name of a network, ``count``, ``confidence`` and ``accuracy`` per bin, see
        `bayesprune.training.reliability`.

    Returns
    -------
    Figure

    Raises
    ------
    DataError
        There is no network, or one of them has no example.
    """
    figure = new_figure(height=4.4)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    lowest = 1.0
    for index, (name, bins) in enumerate(networks.items()):
        counts = numbers([{"count": count} for count in bins["count"]], "count")
        used = counts > 0
        if not used.any():
            raise DataError(f"{name}: expected at least one example, got none")
        count = counts[used]
        confidence, accuracy = (np.asarray(bins[k])[used] for k in ("confidence", "accuracy"))
        intervals = [
            binomtest(round(share * size), int(size)).proportion_ci(method="wilson")
            for share, size in zip(accuracy, count, strict=True)
        ]
        bars = [accuracy - [i.low for i in intervals], [i.high for i in intervals] - accuracy]
        style = curve_style(index)
        above.errorbar(
            confidence,
            accuracy,
            np.clip(bars, 0, 1),
            label=name,
            linestyle="",
            elinewidth=1,
            **style,
        )
        below.plot(confidence, count, **style)
        lowest = min(lowest, confidence.min())
    if not networks:
        raise DataError("networks: expected at least one, got none")
    legend_above(above, "Right as often as it says?")
    above.set(xlim=(max(0.0, lowest - 0.05), 1.02), ylim=(-0.03, 1.03), ylabel="accuracy")
    above.yaxis.set_major_formatter(PercentFormatter(1))
    below.set_yscale("log")
    below.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    below.set(ylabel="examples", xlabel="confidence (probability of the top class)")
    below.xaxis.set_major_formatter(PercentFormatter(1))
    for axes in (above, below):
        axes.grid(axis="y")
    return figure


@rc_context(STYLE)
def pareto_plot(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw test error against multiply-accumulates of several runs.

    Both axes are logarithmic, unless a run has no error at all. Runs with the same label are joined
    in order of cost.  The grey staircase is the frontier: no run has both fewer MACs and a smaller
    error than a point on it.

    Parameters
    ----------
    rows : sequence of mappings
        ``label`` (str), ``macs`` (positive), ``error`` (fraction); optionally ``error_sd``
        (fraction, drawn as an interval of plus and minus one) and ``dense`` (bool, an unpruned
        network: drawn as a star) and ``panel`` (str, of what runs are, such as model and data: runs
        of different panels are not compared, and each has a frontier and axes of its own).

    Returns
    -------
    Figure

    Raises
    ------
    DataError
        There is no row, or one without a positive ``macs`` or without a finite ``error``.
    """
    if not rows:
        raise DataError("rows: expected at least one run, got none")
    macs, error = numbers(rows, "macs"), numbers(rows, "error")
    spread = np.nan_to_num(numbers(rows, "error_sd"))
    for row, good in zip(rows, (macs > 0) & np.isfinite(macs + error), strict=True):
        if not good:
            raise DataError(
                f"run {row.get('label')!r}: expected positive macs and a finite error, "
                f"got {row.get('macs')!r} and {row.get('error')!r}"
            )
    panels = [str(row.get("panel", "")) for row in rows]
    labels = np.array([str(row["label"]) for row in rows])
    dense = np.array([bool(row.get("dense")) for row in rows])
    styles = {name: curve_style(i) for i, name in enumerate(dict.fromkeys(labels[~dense]))}
    kinds = dict.fromkeys(panels)
    figure = new_figure(height=2.9 * len(kinds) + 0.19 * (len(styles) + dense.any()))
    grid = figure.subplots(len(kinds), 1, squeeze=False)[:, 0]
    entries: dict[str, Any] = {}  # of the legend
    for axes, panel in zip(grid, kinds, strict=True):
        here = np.array([other == panel for other in panels])
        order = np.lexsort((error, macs))
        order = order[here[order]]
        front = order[error[order] <= np.minimum.accumulate(error[order])]
        axes.step(macs[front], error[front], where="post", color="#BBBBBB", linewidth=3.0, zorder=1)
        curves = {name: order[(labels[order] == name) & ~dense[order]] for name in styles}
        star = {"color": INK, "marker": "*", "markersize": 10, "linestyle": ""}
        drawn = [(name, runs, {"linewidth": 1.0, **styles[name]}) for name, runs in curves.items()]
        for name, runs, style in [*drawn, ("dense", order[dense[order]], star)]:
            if len(runs):
                bars = np.where(spread[runs] > 0, spread[runs], math.nan)
                entries[name] = axes.errorbar(
                    macs[runs], error[runs], yerr=bars, elinewidth=1.0, capsize=2, **style
                )
        _log_axis(axes, "x", macs[here].min(), macs[here].max(), format_count)
        if error[here].min() > 0:
            most = (error + spread)[here].max()
            _log_axis(axes, "y", error[here].min(), most, lambda v: f"{100 * v:g}%")
            axes.set_ylabel("test error (log scale)")
        else:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
            axes.set_ylabel("test error")
        axes.grid(visible=True)
        axes.set_title(shorten(panel, 48))
    grid[-1].set_xlabel("MACs for one input (log scale)")
    names = [*styles, *(["dense"] if dense.any() else [])]
    legend = grid[-1].legend(
        [entries[name] for name in names],
        ["run"] * len(names),
        loc="upper left",
        bbox_to_anchor=(-0.02, -0.17),
    )
    # Set afterwards: a legend drops labels that start with an underscore.
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(shorten(name, 48))
    return figure


def _log_axis(
    axes: Axes, which: Literal["x", "y"], least: float, most: float, shown: Callable[[float], str]
) -> None:
    """A logarithmic axis with some room and a few labels, however much or little it spans."""
    low, high = least / 1.25, most * 1.25
    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 8 * low else MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: shown(value)))
    axis.set_minor_locator(NullLocator())
