"""Figures of diagnostics."""

from __future__ import annotations

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy.stats import binom

from bayesprune.diagnostics import Calibration
from bayesprune.errors import PlanError
from bayesprune.reporting._figures import CYCLE, MUTED, PALE, STYLE, new_figure, shorten


@rc_context(STYLE)
def calibration_plot(calibration: Calibration, group: str) -> Figure:
    """Draw the ranks of a group's true gates: histograms, and differences from a uniform ECDF.

    Bands hold 99% of what uniform ranks give at one bin, or at one point, of one channel.

    Parameters
    ----------
    calibration : Calibration
        From `bayesprune.diagnostics.simulation_based_calibration`.
    group : str
        Its name.

    Returns
    -------
    Figure

    Raises
    ------
    PlanError
        If there is no such group.
    """
    if group not in calibration.ranks:
        raise PlanError(f"{group}: no such group; groups: {', '.join(calibration.ranks)}")
    ranks, counts = calibration.ranks[group], calibration.counts[group]
    simulations, channels = ranks.shape
    bins, values = calibration.bins, calibration.num_draws + 1
    figure = new_figure(height=4.6)
    histogram, ecdf = figure.subplots(2, 1)

    low, high = binom.interval(0.99, simulations, 1 / bins)
    histogram.axhspan(float(low), float(high), color=PALE)
    edges = np.linspace(0, 1, bins + 1)
    for channel in range(channels):
        histogram.stairs(counts[channel], edges, color=CYCLE[channel % len(CYCLE)], alpha=0.7)
    histogram.set_ylim(0, max(float(high), counts.max()) * 1.1)
    histogram.set_ylabel("data sets")
    histogram.set_title(f"{shorten(group, 24)}: ranks of true gates")

    at = np.arange(values)
    share = (at + 1) / values
    low, high = (q / simulations - share for q in binom.interval(0.99, simulations, share))
    ecdf.fill_between(share, low, high, color=PALE, linewidth=0)
    ecdf.axhline(0, color=MUTED, linewidth=0.8)
    for channel in range(channels):
        below = (ranks[:, channel, None] <= at).mean(0)
        ecdf.plot(share, below - share, color=CYCLE[channel % len(CYCLE)], alpha=0.7)
    ecdf.set_xlabel("rank among posterior draws, as a share")
    ecdf.set_ylabel("ECDF − uniform")
    for axes in (histogram, ecdf):
        axes.set_xlim(0, 1)
    return figure
