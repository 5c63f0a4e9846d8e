"""Figures of a pruning run: what the posterior says, what was kept, what it cost.

Every function returns a `matplotlib.figure.Figure` built without pyplot, so it works in scripts,
in threads and in notebooks, and leaves no open figure behind.  Kept and removed channels differ
in colour (a colour-blind-safe pair) and in marker or frame.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    PercentFormatter,
)

from bayesprune.errors import DataError, PlanError

if TYPE_CHECKING:
    import pandas as pd

    from bayesprune.plan import PruningPlan
    from bayesprune.posterior import SwitchPosterior

# Okabe-Ito colours; figures are narrow (inches) so that their text stays legible on a phone.
_KEPT, _REMOVED, _INK, _MUTED, _PALE = "#0072B2", "#D55E00", "#222222", "#666666", "#E3E3E3"
_CYCLE = (_KEPT, _REMOVED, "#009E73", "#AA4499", "#8C6D00", "#2F9DC9", "#000000")
_MARKERS = "oDs^vPX"
_WIDTH = 4.2
_STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": _PALE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.handletextpad": 0.4,
    "legend.columnspacing": 1.4,
    "lines.linewidth": 1.5,
    "text.color": _INK,
    "text.parse_math": False,
    "xtick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.color": _MUTED,
    "ytick.labelcolor": _INK,
}


@final
class _Figure(Figure):
    """A figure that notebooks show even when nobody has imported pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=130)
        return buffer.getvalue()


def _figure(height: float) -> Figure:
    return _Figure(figsize=(_WIDTH, height), layout="constrained")


def _array(values: Any) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=float)


def _shorten(text: str, length: int) -> str:
    """Cut the middle out of a long name; both ends of a module path tell it apart."""
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def _legend_above(axes: Axes, title: str, columns: int = 3) -> None:
    """Put the legend between the title and the axes, where it can hide no data."""
    handles, labels = axes.get_legend_handles_labels()
    rows = math.ceil(len(handles) / columns)
    axes.set_title(title, pad=6 + 15 * rows)
    if handles:
        axes.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            borderaxespad=0.2,
            borderpad=0.2,
            ncols=columns,
        )


def format_count(number: float) -> str:
    """Write a count with three digits and a unit.

    Parameters
    ----------
    number : float
        A count, at least 0, such as multiply-accumulates.

    Returns
    -------
    str
        For example ``"950"``, ``"159K"`` or ``"2.29M"``.
    """
    unit = ""
    for larger in ("K", "M", "G", "T"):
        if number < 999.5:
            break
        number, unit = number / 1000, larger
    return f"{number:.3g}{unit}"


# --- posterior of one group -------------------------------------------------------------------


def _channels(posterior: SwitchPosterior, group: str) -> np.ndarray:
    return _array(posterior.channels[group]).astype(int)


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
    solid = {"color": _KEPT, "marker": "o"}
    if mask is None:
        yield "channels", np.arange(size), solid
        return
    hollow = {"color": _REMOVED, "marker": "D", "markerfacecolor": "white"}
    for name, part, style in (("kept", mask, solid), ("removed", ~mask, hollow)):
        if part.any():
            yield f"{name} ({part.sum()})", np.flatnonzero(part), style


@rc_context(_STYLE)
def forest_plot(
    posterior: SwitchPosterior,
    group: str,
    plan: PruningPlan | None = None,
    max_channels: int = 60,
) -> Figure:
    """Draw the posterior of one group's gates, channels sorted by mean.

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
    mean = _array(posterior.mean[group])
    order = np.argsort(-mean, kind="stable")
    mask = _kept_mask(channels, group, plan)
    bounds = [_array(posterior.quantile(q)[group])[order] for q in (0.03, 0.25, 0.75, 0.97)]
    draw = _forest_rows if len(channels) <= max_channels else _forest_bands
    return draw(
        f"Gates of {_shorten(group, 32)}",
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
    figure = _figure(height=1.15 + 0.165 * len(channels))
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
    _legend_above(axes, title)
    return figure


def _forest_bands(
    title: str,
    channels: np.ndarray,
    mean: np.ndarray,
    bounds: Sequence[np.ndarray],
    mask: np.ndarray | None,
) -> Figure:
    figure = _figure(height=3.2)
    axes, rug = figure.subplots(2, 1, sharex=True, height_ratios=(6, 1))
    rank = np.arange(1, len(channels) + 1)
    low, lower, upper, high = bounds
    axes.fill_between(rank, low, high, color=_INK, alpha=0.14, linewidth=0, label="94%")
    axes.fill_between(rank, lower, upper, color=_INK, alpha=0.30, linewidth=0, label="50%")
    axes.plot(rank, mean, color=_INK, label="mean")
    axes.set_xlim(0, len(channels) + 1)
    if low.min() >= 0:
        axes.set_ylim(bottom=0)
    axes.set_ylabel("gate")
    axes.grid(axis="y")
    _legend_above(axes, title)

    labels = []
    for row, (label, places, style) in enumerate(_parts(mask, len(channels))):
        rug.vlines(rank[places], row - 0.4, row + 0.4, colors=style["color"], linewidth=0.9)
        labels.append(label)
    rug.set_yticks(range(len(labels)), labels)
    rug.set_ylim(len(labels) - 0.5, -0.5)
    rug.tick_params(axis="y", length=0)
    rug.spines["left"].set_visible(False)
    rug.set_xlabel("rank of the channel by mean gate")
    return figure


# --- decisions --------------------------------------------------------------------------------


@rc_context(_STYLE)
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
    figure = _figure(height=0.75 + 0.27 * len(architecture))
    axes = figure.subplots()
    rows = np.arange(len(architecture))
    kept = np.array([group["kept"] for group in architecture.values()])
    size = np.array([group["of"] for group in architecture.values()])
    axes.barh(rows, np.ones(len(rows)), height=0.62, color=_PALE)
    axes.barh(rows, kept / size, height=0.62, color=_KEPT)
    for row, group in enumerate(architecture.values()):
        axes.text(1.02, row, f"{group['kept']} / {group['of']}", va="center", ha="left")
    axes.set_yticks(rows, [_shorten(name, 24) for name in architecture])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("channels kept")
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


@rc_context(_STYLE)
def rank_probability_plot(posterior: SwitchPosterior, plan: PruningPlan) -> Figure:
    """Draw P(channel among the best k of its group), sorted, k being the number kept.

    One panel per group.  Between the grey lines at 0.05 and 0.95 a decision is uncertain.  Large
    groups are shown up to where the probability has become negligible.

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
    columns = 1 if len(groups) <= 4 else 2
    rows = math.ceil(len(groups) / columns)
    figure = _figure(height=0.5 + 1.35 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(groups) :]:
        axes.remove()
    for axes, name in zip(grid.flat, groups, strict=False):
        mask = _kept_mask(_channels(posterior, name), name, plan)
        assert mask is not None  # every group here is in the plan
        _rank_panel(axes, _shorten(name, 34 // columns), _array(probabilities[name]), mask)
    handles = {
        str(line.get_label()): line
        for axes in figure.axes
        for line in axes.lines
        if line.get_marker() in ("o", "D")
    }
    figure.legend(handles.values(), handles.keys(), loc="outside upper right", ncols=2)
    figure.supxlabel("rank of the channel by probability (k = number kept)", fontsize=9)
    figure.supylabel("P(among the best k)", fontsize=9)
    return figure


def _rank_panel(axes: Axes, name: str, probability: np.ndarray, mask: np.ndarray) -> None:
    order = np.argsort(-probability, kind="stable")
    probability, mask, size = probability[order], mask[order], len(order)
    kept = int(mask.sum())
    last = 1 + np.flatnonzero(mask | (probability >= 0.005)).max(initial=0)
    shown = size if size <= 60 else min(size, math.ceil(1.25 * last) + 2)
    for level in (0.05, 0.95):
        axes.axhline(level, color=_MUTED, linewidth=0.7, linestyle=(0, (4, 3)))
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
            color=_MUTED,
        )


# --- fitting ----------------------------------------------------------------------------------


def numbers(rows: Sequence[Mapping[str, Any]], column: str) -> np.ndarray:
    """Read one column of a table whose cells may be text or missing, such as ``metrics.csv``.

    Parameters
    ----------
    rows : sequence of mappings
        The table.
    column : str
        Its column.

    Returns
    -------
    array of shape (len(rows),)
        The numbers; NaN where a row has none.
    """
    values = np.full(len(rows), math.nan)
    for place, row in enumerate(rows):
        try:
            values[place] = float(row[column])
        except (KeyError, TypeError, ValueError):
            continue
    return values


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
        axes.axvline(stretch.start + 0.5, color=_MUTED, linewidth=0.7, linestyle=(0, (2, 2)))


@rc_context(_STYLE)
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
    figure = _figure(height=0.6 + 1.3 * len(curves))
    panels = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (column, values), colour in zip(panels, curves.items(), _CYCLE, strict=False):
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


@rc_context(_STYLE)
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
    colours = dict(zip(stages, cycle(_CYCLE), strict=False))
    figure = _figure(height=0.9 + 1.7 * len(curves))
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
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylabel(column)
        axes.grid(axis="y")
    _legend_above(panels[0], "Training")
    panels[-1].set_xlabel("epoch, all stages in a row")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


# --- feature maps -----------------------------------------------------------------------------


def _picture(image: Any) -> np.ndarray:
    """Bring (h, w), (1|3, h, w) or (h, w, 1|3) to what imshow takes, scaled to [0, 1]."""
    picture = _array(image)
    if picture.ndim == 3 and picture.shape[0] in (1, 3):
        picture = np.moveaxis(picture, 0, -1)
    if picture.ndim == 3 and picture.shape[-1] == 1:
        picture = picture[..., 0]
    if picture.ndim != 2 and (picture.ndim != 3 or picture.shape[-1] != 3):
        raise DataError(f"image: expected (h, w), (1|3, h, w) or (h, w, 1|3), got {picture.shape}")
    spread = float(np.ptp(picture))
    return (picture - picture.min()) / (spread if spread > 0 else 1.0)


@rc_context(_STYLE)
def feature_maps(
    image: Any,
    maps: Any,
    importance: Any | None = None,
    kept: Iterable[int] | None = None,
    max_maps: int = 64,
) -> Figure:
    """Draw an input image and a layer's feature maps, ranked by importance.

    Each map is titled with its original channel index and importance.  Removed maps are faded in
    a dashed frame, kept maps have a solid one.  All maps share one grey scale (1st to 99th
    percentile, dark is strong), so that a channel that does little looks flat.

    After Adamczewski & Park, *Dirichlet Pruning for Neural Network Compression*, AISTATS 2021,
    supplement, Figure 2.

    Parameters
    ----------
    image : array of shape (h, w), (1 or 3, h, w) or (h, w, 1 or 3)
        The input, in any range.
    maps : array of shape (C, h', w')
        Feature maps; row i belongs to original channel i.
    importance : array of shape (C,), optional
        For example the posterior mean of each gate; NaN marks a channel without a value, ranked
        last.  Without it, kept channels come first and nothing is ranked.
    kept : iterable of int, optional
        Original indices of the kept channels; without it, nothing is framed.
    max_maps : int, default 64
        Draw no more than the first so many maps.

    Returns
    -------
    Figure

    Raises
    ------
    DataError
        An argument has another shape, or `kept` names a channel that is not there.
    """
    maps = _array(maps)
    if maps.ndim != 3 or maps.size == 0:
        raise DataError(f"maps: expected shape (C, h, w), got {maps.shape}")
    count = len(maps)
    values = np.full(count, math.nan) if importance is None else _array(importance)
    if values.shape != (count,):
        raise DataError(f"importance: expected shape ({count},), got {values.shape}")
    alive = None if kept is None else set(kept)
    if alive and not alive <= set(range(count)):
        raise DataError(f"kept: expected indices below {count}, got {max(alive)}")
    removed = np.array([alive is not None and i not in alive for i in range(count)])
    # Unranked channels last; among those without a value, kept ones first.
    order = np.lexsort((removed, np.nan_to_num(-values, nan=math.inf)))[:max_maps]

    columns = 5
    rows = math.ceil((1 + len(order)) / columns)
    cell = 0.2 + 0.85 * min(2.0, max(0.5, maps.shape[1] / maps.shape[2]))
    figure = _figure(height=0.25 + cell * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[1 + len(order) :]:
        axes.remove()
    for axes in grid[: 1 + len(order)]:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    grid[0].imshow(_picture(image), cmap="gray", vmin=0, vmax=1)
    grid[0].set_title("input", fontsize=8, pad=3)
    low, high = np.percentile(maps, (1, 99))
    for axes, channel in zip(grid[1:], order, strict=False):
        faded = removed[channel]
        axes.imshow(maps[channel], cmap="gray_r", vmin=low, vmax=high, alpha=0.45 if faded else 1)
        value = values[channel]
        title = f"{channel}" if math.isnan(value) else f"{channel}: {value:.2g}"
        axes.set_title(title, fontsize=8, fontweight="normal", pad=3)
        if alive is not None:
            axes.spines[:].set(
                visible=True,
                edgecolor=_REMOVED if faded else _KEPT,
                linestyle=(0, (3, 2)) if faded else "solid",
                linewidth=1.2 if faded else 1.8,
            )
    notes = [] if count == len(order) else [f"first {len(order)} of {count} channels"]
    notes += [] if alive is None else ["solid frame: kept, dashed: removed"]
    figure.supxlabel("; ".join([*notes, "dark: strong"]), fontsize=8)
    return figure


# --- several runs -----------------------------------------------------------------------------


@rc_context(_STYLE)
def pareto_plot(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw test error against multiply-accumulates of several runs.

    Runs with the same label are joined in order of cost.  The grey staircase is the frontier: no
    run has both fewer MACs and a smaller error than a point on it.

    Parameters
    ----------
    rows : sequence of mappings
        ``label`` (str), ``macs`` (positive), ``error`` (fraction); optionally ``error_sd``
        (fraction, drawn as an interval of plus and minus one) and ``dense`` (bool, an unpruned
        network: drawn as a star).

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
    labels = [str(row["label"]) for row in rows]
    dense = np.array([bool(row.get("dense")) for row in rows])

    names = list(
        dict.fromkeys(label for label, star in zip(labels, dense, strict=True) if not star)
    )
    figure = _figure(height=2.9 + 0.19 * (len(names) + dense.any()))
    axes = figure.subplots()
    order = np.lexsort((error, macs))
    front = order[error[order] <= np.minimum.accumulate(error[order])]
    axes.step(macs[front], error[front], where="post", color="#BBBBBB", linewidth=3.0, zorder=1)
    handles = []
    for place, name in enumerate(names):
        runs = np.array([i for i in order if labels[i] == name and not dense[i]])
        colour = _CYCLE[place % len(_CYCLE)]
        # Marker and colour fall out of step after one cycle, so that 7 x 7 labels stay distinct.
        marker = _MARKERS[(place + place // len(_CYCLE)) % len(_MARKERS)]
        handles.append(
            axes.errorbar(
                macs[runs],
                error[runs],
                yerr=np.where(spread[runs] > 0, spread[runs], math.nan),
                color=colour,
                marker=marker,
                markersize=5,
                linewidth=1.0,
                elinewidth=1.0,
                capsize=2,
            )
        )
    if dense.any():
        names.append("dense")
        handles.append(
            axes.errorbar(
                macs[dense],
                error[dense],
                yerr=np.where(spread[dense] > 0, spread[dense], math.nan),
                color=_INK,
                marker="*",
                markersize=10,
                linestyle="",
                elinewidth=1.0,
                capsize=2,
            )
        )
    axes.set_xscale("log")
    low, high = macs.min() / 1.25, macs.max() * 1.25
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 8 * low else MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("MACs for one input (log scale)")
    axes.set_ylabel("test error")
    axes.grid(visible=True)
    legend = axes.legend(
        handles, ["run"] * len(handles), loc="upper left", bbox_to_anchor=(-0.02, -0.17)
    )
    # Set afterwards: a legend drops labels that start with an underscore.
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(_shorten(name, 48))
    return figure


# --- agreement of rankings --------------------------------------------------------------------


@rc_context(_STYLE)
def agreement_plot(table: pd.DataFrame, group: str, measure: str = "spearman") -> Figure:
    """Draw how far the rankings of one group agree, method by method.

    Blue pairs agree, orange ones order the units the other way round. Hatched cells are unknown,
    for one of the methods gives all units the same score.

    Parameters
    ----------
    table : DataFrame
        From `rank_agreement`.
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
    figure = _figure(height=1.9 + 2.6 * min(1.0, side / 8))
    axes = figure.subplots()
    axes.set_facecolor("white")
    colours = LinearSegmentedColormap.from_list("agreement", [_REMOVED, "#F7F7F7", _KEPT])
    shown = np.ma.masked_invalid(lower)
    picture = axes.imshow(shown, cmap=colours, vmin=-1, vmax=1, aspect="auto")
    for row in range(side):
        for column in range(row + 1):
            value = lower[row, column]
            if math.isnan(value):
                corner = (column - 0.5, row - 0.5)
                axes.add_patch(Rectangle(corner, 1, 1, fill=False, hatch="////", edgecolor=_PALE))
            elif side <= 16:
                ink = "white" if abs(value) > 0.6 else _INK
                text = f"{round(value, 2) + 0.0:.2f}".replace("0.", ".").replace("1.00", "1")
                axes.text(column, row, text, ha="center", va="center", fontsize=6, color=ink)
    axes.set_xticks(range(side), [_shorten(name, 22) for name in names[:-1]], rotation=90)
    axes.set_yticks(range(side), [_shorten(name, 22) for name in names[1:]])
    axes.tick_params(length=0, labelsize=7.5)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(_shorten(group, 30))
    title = {"spearman": "Spearman's ρ", "kendall": "Kendall's τ"}[measure]
    bar = figure.colorbar(picture, ax=axes, shrink=0.7, aspect=18, ticks=[-1, 0, 1])
    bar.set_label(title, fontsize=8)
    bar.ax.tick_params(labelsize=7.5)
    return figure
