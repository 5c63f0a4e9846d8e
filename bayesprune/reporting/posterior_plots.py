"""Figures of a posterior: gates, and how clear the choice between channels is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bayesprune.errors import BayespruneError, PlanError
from bayesprune.reporting._figures import (
    INK,
    KEPT,
    MUTED,
    REMOVED,
    STYLE,
    array,
    legend_above,
    new_figure,
    shorten,
)

if TYPE_CHECKING:
    from bayesprune.plan import PruningPlan
    from bayesprune.posterior import SwitchPosterior
    from bayesprune.selection import ChannelScores


def selection_scores(posterior: SwitchPosterior, plan: PruningPlan | None) -> ChannelScores:
    """The scores that a plan was chosen by; without a plan of this posterior, the family's own."""
    if plan is not None:
        try:
            return posterior.scores(plan.method)
        except BayespruneError:  # what a criterion measures, for example
            pass
    return posterior.scores()


def _channels(posterior: SwitchPosterior, group: str) -> np.ndarray:
    return array(posterior.channels[group]).astype(int)


def _kept_mask(channels: np.ndarray, group: str, plan: PruningPlan | None) -> np.ndarray | None:
    """Which of `channels` the plan keeps; None where no plan decides on the group."""
    if plan is None or group not in plan.kept:
        return None
    unknown = sorted(set(plan.kept[group]) - set(channels.tolist()))
    if unknown:
        raise PlanError(
            f"{group}: expected kept channels among the {len(channels)} of the posterior, "
            f"got {unknown[:10]}"
        )
    return np.isin(channels, plan.kept[group])


def _parts(mask: np.ndarray | None, size: int) -> Iterator[tuple[str, np.ndarray, dict[str, Any]]]:
    """Yield legend label, positions and marker style of the kept and the removed channels."""
    solid = {"color": KEPT, "marker": "o"}
    if mask is None:
        yield "channels", np.arange(size), solid
        return
    hollow = {"color": REMOVED, "marker": "D", "markerfacecolor": "white"}
    for name, part, style in (("kept", mask, solid), ("removed", ~mask, hollow)):
        if part.any():
            yield f"{name} ({part.sum()})", np.flatnonzero(part), style


@rc_context(STYLE)
def forest_plot(
    posterior: SwitchPosterior,
    group: str,
    plan: PruningPlan | None = None,
    max_channels: int = 60,
) -> Figure:
    """Draw the posterior of one group's gates, channels in the order of the selection.

    The order is that of the scores that the plan was chosen by, the best first; without such a
    plan, of the family's importance.

    Up to `max_channels`, one row per channel: the mean, the central 50% interval (thick) and the
    central 94% interval (thin), labelled with the original channel index.  Beyond, the same
    numbers against the rank as a line and two bands, with one tick per kept and removed channel
    below.

    Parameters
    ----------
    posterior : SwitchPosterior
        Gates per group.
    group : str
        Name of a group of the posterior.
    plan : PruningPlan, optional
        Tells kept from removed channels; without it, or if it has no entry for the group, all
        channels look alike.
    max_channels : int, default 60
        Largest number of channels that get a row of their own.

    Returns
    -------
    Figure

    Raises
    ------
    PlanError
        The posterior has no such group, or the plan keeps a channel that it does not have.
    """
    if group not in posterior.names:
        raise PlanError(f"expected a group of the posterior {posterior.names}, got {group!r}")
    channels = _channels(posterior, group)
    switch = posterior.switches[group]  # families without closed forms draw, so only this one
    mean = array(switch.mean())
    order = np.array(selection_scores(posterior, plan).order(group)[::-1])
    mask = _kept_mask(channels, group, plan)
    bounds = [array(switch.quantile(q))[order] for q in (0.03, 0.25, 0.75, 0.97)]
    draw = _forest_rows if len(channels) <= max_channels else _forest_bands
    return draw(
        f"Gates of {shorten(group, 32)}",
        channels[order],
        mean[order],
        bounds,
        None if mask is None else mask[order],
    )


def _forest_rows(
    title: str,
    channels: np.ndarray,
    mean: np.ndarray,
    bounds: Sequence[np.ndarray],
    mask: np.ndarray | None,
) -> Figure:
    figure = new_figure(height=1.15 + 0.165 * len(channels))
    axes = figure.subplots()
    low, lower, upper, high = bounds
    for label, rows, style in _parts(mask, len(channels)):
        colour = style["color"]
        axes.hlines(rows, low[rows], high[rows], colors=colour, linewidth=1.0)
        axes.hlines(rows, lower[rows], upper[rows], colors=colour, linewidth=3.2, alpha=0.65)
        axes.plot(
            mean[rows], rows, linestyle="", markersize=4.5, label=label, clip_on=False, **style
        )
    axes.spines["left"].set_visible(False)
    axes.set_yticks(np.arange(len(channels)), [str(c) for c in channels], fontsize=8)
    axes.set_ylim(len(channels) - 0.3, -0.7)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    if low.min() >= 0:
        axes.set_xlim(left=0)
    axes.set_xlabel("gate: mean, 50% (thick) and 94% interval")
    axes.set_ylabel("channel (original index)")
    legend_above(axes, title)
    return figure


def _forest_bands(
    title: str,
    channels: np.ndarray,
    mean: np.ndarray,
    bounds: Sequence[np.ndarray],
    mask: np.ndarray | None,
) -> Figure:
    figure = new_figure(height=3.2)
    axes, rug = figure.subplots(2, 1, sharex=True, height_ratios=(6, 1))
    rank = np.arange(1, len(channels) + 1)
    low, lower, upper, high = bounds
    axes.fill_between(rank, low, high, color=INK, alpha=0.14, linewidth=0, label="94%")
    axes.fill_between(rank, lower, upper, color=INK, alpha=0.30, linewidth=0, label="50%")
    axes.plot(rank, mean, color=INK, label="mean")
    axes.set_xlim(0, len(channels) + 1)
    axes.set_ylabel("gate")
    bottom = min(np.quantile(low, 0.02), mean.min())
    top = max(np.quantile(high, 0.98), mean.max())
    if np.ptp([low, high]) > 3 * (top - bottom):  # a few wide ones would flatten all others
        beyond = int(((low < bottom) | (high > top)).sum())
        axes.set_ylim(bottom, top)
        axes.set_ylabel(f"gate ({beyond} beyond the edge)")
    if low.min() >= 0:
        axes.set_ylim(bottom=0)
    axes.grid(axis="y")
    legend_above(axes, title)

    labels = []
    for row, (label, places, style) in enumerate(_parts(mask, len(channels))):
        rug.vlines(rank[places], row - 0.4, row + 0.4, colors=style["color"], linewidth=0.9)
        labels.append(label)
    rug.set_yticks(range(len(labels)), labels)
    rug.set_ylim(len(labels) - 0.5, -0.5)
    rug.tick_params(axis="y", length=0)
    rug.spines["left"].set_visible(False)
    rug.set_xlabel("rank of the channel by score")
    return figure


def rank_probability(posterior: SwitchPosterior, plan: PruningPlan) -> dict[str, torch.Tensor]:
    """Compute P(channel among the best k of its group), k being the number kept.

    Parameters
    ----------
    posterior : SwitchPosterior
        Gates per group.
    plan : PruningPlan
        Kept channels; a group without an entry counts as kept whole.

    Returns
    -------
    dict of str to Tensor of shape (C,)
        Probabilities per group of the posterior.
    """
    count = {
        name: len(plan.kept.get(name, channels)) for name, channels in posterior.channels.items()
    }
    return posterior.rank_probability(count)


@rc_context(STYLE)
def rank_probability_plot(posterior: SwitchPosterior, plan: PruningPlan) -> Figure:
    """Draw P(channel among the best k of its group), k being the number kept.

    One panel per group, its channels in the order of the scores that the plan was chosen by.
    Between the grey lines at 0.05 and 0.95 a decision is uncertain.  Large groups are shown up to
    where the probability has become negligible.

    Parameters
    ----------
    posterior : SwitchPosterior
        Rank probabilities per group.
    plan : PruningPlan
        Kept channels; groups without an entry are left out.

    Returns
    -------
    Figure

    Raises
    ------
    PlanError
        Plan and posterior have no group in common, or the plan keeps a channel that the
        posterior does not have.
    """
    groups = [name for name in posterior.names if name in plan.kept]
    if not groups:
        raise PlanError(
            f"expected a plan for groups of the posterior {posterior.names}, got {[*plan.kept]}"
        )
    probabilities = rank_probability(posterior, plan)
    scores = selection_scores(posterior, plan)
    columns = 1 if len(groups) <= 4 else 2
    rows = math.ceil(len(groups) / columns)
    figure = new_figure(height=0.5 + 1.35 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(groups) :]:
        axes.remove()
    for axes, name in zip(grid.flat, groups, strict=False):
        mask = _kept_mask(_channels(posterior, name), name, plan)
        assert mask is not None  # every group here is in the plan
        order = np.array(scores.order(name)[::-1])
        probability = array(probabilities[name])
        _rank_panel(axes, shorten(name, 34 // columns), probability[order], mask[order])
    handles = {
        str(line.get_label()): line
        for axes in figure.axes
        for line in axes.lines
        if line.get_marker() in ("o", "D")
    }
    figure.legend(handles.values(), handles.keys(), loc="outside upper right", ncols=2)
    figure.supxlabel("rank of the channel by score (k = number kept)", fontsize=9)
    figure.supylabel("P(among the best k)", fontsize=9)
    return figure


def _rank_panel(axes: Axes, name: str, probability: np.ndarray, mask: np.ndarray) -> None:
    size, kept = len(mask), int(mask.sum())
    last = 1 + np.flatnonzero(mask | (probability >= 0.005)).max(initial=0)
    shown = size if size <= 60 else min(size, math.ceil(1.25 * last) + 2)
    for level in (0.05, 0.95):
        axes.axhline(level, color=MUTED, linewidth=0.7, linestyle=(0, (4, 3)))
    for label, places, style in _parts(mask, size):
        style["label"] = label.split()[0]
        places = places[places < shown]
        axes.plot(places + 1, probability[places], linestyle="", markersize=3.8, **style)
    axes.set_xlim(0.4 if size <= 60 else 0, shown + 0.6)
    axes.set_ylim(-0.07, 1.07)
    axes.set_yticks([0, 0.5, 1])
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.set_title(f"{name}: {kept} of {size}", fontsize=8.5, fontweight="normal")
    if shown < size:
        axes.text(
            0.99,
            0.5,
            f"{size - shown} more\nbelow 0.005",
            transform=axes.transAxes,
            ha="right",
            va="center",
            fontsize=8,
            color=MUTED,
        )
