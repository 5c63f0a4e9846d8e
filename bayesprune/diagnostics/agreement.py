"""How far rankings agree: between methods, and between resamples of the data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn

from bayesprune._checks import check_integer
from bayesprune.batches import Batch, checked_batch, of_each
from bayesprune.criteria import Criterion
from bayesprune.errors import PlanError
from bayesprune.groups import ChannelGroups
from bayesprune.selection import ChannelScores

MEASURES = ("kendall", "spearman")


def rank_agreement(scores: Mapping[str, ChannelScores]) -> pd.DataFrame:
    """Rank correlations between the scores of several methods, group by group.

    Parameters
    ----------
    scores : mapping of str to ChannelScores
        Two or more, by the name of the method: criteria, or the scores of posteriors. All of the
        same network.

    Returns
    -------
    DataFrame
        One row per group and pair of methods that score it: `group`, `first`, `second`, `units`,
        and Kendall's tau-b and Spearman's rho, in [-1, 1], as `kendall` and `spearman`. They are
        NaN where all units have the same score.

    Raises
    ------
    PlanError
        If there are fewer than two methods, or two of them score different numbers of units.
    """
    if len(scores) < 2:
        raise PlanError(f"rank_agreement: expected scores of at least 2 methods, got {len(scores)}")
    rows = []
    for first, second in combinations(scores, 2):
        one, other = scores[first].values, scores[second].values
        for group in one:
            if group not in other:
                continue
            if len(one[group]) != len(other[group]):
                raise PlanError(
                    f"{group}: {first} scores {len(one[group])} units, {second} {len(other[group])}"
                )
            rows.append(
                {"group": group, "first": first, "second": second, "units": len(one[group])}
                | _correlations(one[group], other[group])
            )
    return pd.DataFrame(rows, columns=["group", "first", "second", "units", *MEASURES])


def _correlations(one: Tensor, other: Tensor) -> dict[str, float]:
    if min(len(one.unique()), len(other.unique())) < 2:
        return dict.fromkeys(MEASURES, float("nan"))
    a, b = one.cpu().numpy(), other.cpu().numpy()
    found: dict[str, Any] = {"kendall": stats.kendalltau(a, b), "spearman": stats.spearmanr(a, b)}
    return {measure: float(test.statistic) for measure, test in found.items()}


def rank_stability(
    criterion: Criterion,
    network: nn.Module,
    groups: ChannelGroups,
    loader: Iterable[Any],
    bootstraps: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """Rank correlations between a criterion's scores on resamples of the data.

    Each resample takes every example of the loader a Poisson(1)-distributed number of times, batch
    by batch, so that nothing is held in memory (the Poisson bootstrap).

    Parameters
    ----------
    criterion : Criterion
    network : nn.Module
    groups : ChannelGroups
    loader : iterable
        Batches ``(inputs, targets)``; read once per resample.
    bootstraps : int
        Number of resamples, >= 3.
    seed : int

    Returns
    -------
    DataFrame
        One row per group, with the mean and the standard deviation over all pairs of resamples:
        `group`, `units`, `kendall`, `kendall_sd`, `spearman`, `spearman_sd`.

    Raises
    ------
    ConfigError
        If `bootstraps` is below 3.
    """
    check_integer("bootstraps", bootstraps, least=3)
    scores = {
        str(number): criterion.scores(network, groups, _resampled(loader, seed, number))
        for number in range(bootstraps)
    }
    rows = []
    for group, pairs in rank_agreement(scores).groupby("group", sort=False):
        row = {"group": group, "units": pairs["units"].iloc[0]}
        for measure in MEASURES:
            values = pairs[measure].to_numpy()
            row |= {measure: values.mean(), f"{measure}_sd": values.std(ddof=1)}
        rows.append(row)
    return pd.DataFrame(rows)


def _resampled(loader: Iterable[Any], *seeds: int) -> Iterator[Batch]:
    generator = np.random.default_rng(seeds)
    for index, loaded in enumerate(loader):
        batch = checked_batch(loaded, index)
        times = torch.from_numpy(generator.poisson(1.0, len(batch[1]))).to(batch[1].device)
        if times.any():
            yield of_each(batch, lambda tensor, n=times: tensor.repeat_interleave(n, 0))
