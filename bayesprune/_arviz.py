"""The one place that knows which ArviZ is installed: 0.x or 1.x."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import xarray as xr

_IS_OLD = version("arviz").startswith("0.")


def _load(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ 0.23 announces its refactor at import
        return importlib.import_module(name)


def container(datasets: Mapping[str, xr.Dataset]) -> Any:
    """Groups of draws as what the installed ArviZ works on: InferenceData or DataTree."""
    if not _IS_OLD:
        return xr.DataTree.from_dict(dict(datasets))
    arviz = _load("arviz")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it remarks on groups that it does not know
        return arviz.InferenceData(**datasets)


def switch_coords(channels: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Coordinates along `switch`, from the original indices, shape ``(C,)``, by group."""
    return {
        "switch": [f"{name}:{index}" for name, units in channels.items() for index in units],
        "layer": ("switch", np.repeat(list(channels), [len(u) for u in channels.values()])),
        "channel": ("switch", np.concatenate(list(channels.values()))),
    }


def pareto_smooth(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Pareto-smoothed log weights, normalised, in the same order, and k-hat.

    Of equal weights k-hat is minus infinity.
    """
    if np.ptp(log_weights) < 1e-9:  # the proposal is the target: there is no tail to fit
        return np.full(len(log_weights), -np.log(len(log_weights))), -math.inf
    if _IS_OLD:
        smoothed, k = _load("arviz").psislw(log_weights)
    else:
        # The weights of leave-one-out: it takes the log likelihood, of which they are the inverse.
        smoothed, k = _load("arviz_stats.base").array_stats.psislw(-log_weights)
    return np.asarray(smoothed), float(k)


def _of_each(function: str, draws: np.ndarray) -> np.ndarray:
    data = xr.Dataset({"draws": (("chain", "draw", "switch"), draws)})
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # draws that do not vary
        return getattr(_load("arviz"), function)(data)["draws"].values


def rhat(draws: np.ndarray) -> np.ndarray:
    """Rank-normalised split R-hat of draws (chain, draw, switch); NaN where nothing varies."""
    return _of_each("rhat", draws)


def ess(draws: np.ndarray) -> np.ndarray:
    """Bulk effective sample size of draws (chain, draw, switch)."""
    return _of_each("ess", draws)
