"""Sparse training over a grid of a penalty's settings."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import pandas as pd
from torch import nn

from bayesprune._describe import init_args
from bayesprune.batches import Loader
from bayesprune.errors import ConfigError
from bayesprune.groups import ChannelGroups
from bayesprune.penalties._penalty import Penalty
from bayesprune.training import TrainConfig, evaluate


def regularisation_path(
    penalty: Penalty,
    strengths: Sequence[float],
    network: nn.Module,
    groups: ChannelGroups,
    loader: Loader,
    config: TrainConfig,
    *,
    validation: Loader,
    **options: Any,
) -> pd.DataFrame:
    """Train with rising strengths, each fit starting from the one before.

    Parameters
    ----------
    penalty : Penalty
        Gives all settings but the strength.
    strengths : sequence of float
        Ascending.
    network, groups, loader, config
        As in `Penalty.train`; the network is where the first fit starts.
    validation : DataLoader
        Held-out batches of inputs and labels.
    **options
        Further keyword arguments of `Penalty.train`.

    Returns
    -------
    DataFrame
        A row per strength: ``strength``, held-out ``error`` and ``nll``, the ``loss`` of the last
        epoch, and the number of ``units`` whose score is not 0, in all and as ``units:GROUP``.
        `bayesprune.reporting.path_plot` draws it.

    Raises
    ------
    ConfigError
        If the penalty has no strength, or the strengths do not rise.
    """
    if list(strengths) != sorted(set(strengths)) or not strengths:
        raise ConfigError(f"strengths: expected ascending numbers, got {list(strengths)}")
    rows = []
    for strength in strengths:
        fit = _with(penalty, strength=strength).train(
            network, groups, loader, config, stage=f"strength {strength:g}", **options
        )
        network = fit.network
        rows.append({"strength": strength, **_row(fit, validation)})
    return pd.DataFrame(rows)


def sensitivity(
    penalty: Penalty,
    settings: dict[str, Sequence[float]],
    network: nn.Module,
    groups: ChannelGroups,
    loader: Loader,
    config: TrainConfig,
    *,
    validation: Loader,
    **options: Any,
) -> pd.DataFrame:
    """Train once for every combination of settings, always from the same network.

    Parameters
    ----------
    penalty : Penalty
        Gives the settings that do not vary.
    settings : dict of str to sequence
        Values by argument of the penalty, for example ``strength`` and ``threshold``.
    network, groups, loader, config, validation, **options
        As in `regularisation_path`.

    Returns
    -------
    DataFrame
        A row per combination: the settings and the columns of `regularisation_path`.
        `bayesprune.reporting.sensitivity_plot` draws it.

    Raises
    ------
    ConfigError
        If the penalty does not have a setting.
    """
    rows = []
    for values in itertools.product(*settings.values()):
        chosen = dict(zip(settings, values, strict=True))
        stage = " ".join(f"{name} {value:g}" for name, value in chosen.items())
        fit = _with(penalty, **chosen).train(
            network, groups, loader, config, stage=stage, **options
        )
        rows.append({**chosen, **_row(fit, validation)})
    return pd.DataFrame(rows)


def _with(penalty: Penalty, **changed: Any) -> Penalty:
    known = init_args(penalty)
    for name in changed:
        if name not in known:
            raise ConfigError(
                f"{type(penalty).__name__}: expected a setting of {', '.join(known)}, got {name}"
            )
    return type(penalty)(**(copy.deepcopy(known) | changed))


def _row(fit: Any, validation: Loader) -> dict[str, float]:
    quality = evaluate(fit.network, validation)
    left = {name: int((values > 0).sum()) for name, values in fit.scores.values.items()}
    return {
        "error": quality["error"],
        "nll": quality["nll"],
        "loss": fit.history[-1]["loss"] if fit.history else float("nan"),
        "units": sum(left.values()),
        **{f"units:{name}": number for name, number in left.items()},
    }
