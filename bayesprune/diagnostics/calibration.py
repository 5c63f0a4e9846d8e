"""Simulation-based calibration: whether posteriors are right on average over simulated data."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.stats import chisquare
from torch import Tensor

from bayesprune._checks import check_integer
from bayesprune._modes import seeded
from bayesprune.batches import Loader
from bayesprune.diagnostics._diagnostic import Diagnostic, shown
from bayesprune.diagnostics._joint import check_posterior, device_of
from bayesprune.errors import ConfigError, PlanError
from bayesprune.network import SwitchedNetwork
from bayesprune.posterior import SwitchPosterior

Simulate = Callable[[dict[str, Tensor], int], Loader]
"""From true gates by group, shape ``(C,)``, and a seed to a loader of data that they made."""

Fit = Callable[[Loader, int], SwitchPosterior]
"""From a loader and a seed to a posterior."""


@dataclass(frozen=True, repr=False, eq=False)
class Calibration(Diagnostic):
    """Ranks of true gates among posterior draws.

    Attributes
    ----------
    ranks : dict of str to ndarray
        By group, shape ``(simulations, C)``: how many of the draws are below the true gate, from 0
        to `num_draws`. If posteriors are right, each is uniform.
    num_draws : int
    bins : int
        Of the histograms; divides ``num_draws + 1``.
    """

    ranks: dict[str, np.ndarray]
    num_draws: int
    bins: int

    @property
    def counts(self) -> dict[str, np.ndarray]:
        """Histogram of the ranks of each channel, shape ``(C, bins)``."""
        width = (self.num_draws + 1) // self.bins
        return {
            name: np.stack([np.bincount(r // width, minlength=self.bins) for r in ranks.T])
            for name, ranks in self.ranks.items()
        }

    @property
    def p_values(self) -> dict[str, np.ndarray]:
        """Chi-square p value of uniform ranks, of each channel, shape ``(C,)``."""
        return {
            name: np.asarray(chisquare(counts, axis=1).pvalue)
            for name, counts in self.counts.items()
        }

    @property
    def p(self) -> float:
        """The smallest p value times the number of channels (Bonferroni), at most 1."""
        values = np.concatenate(list(self.p_values.values()))
        return float(min(1.0, values.min() * len(values)))

    @property
    def is_good(self) -> bool:
        """Whether ranks pass for uniform: p > 0.01."""
        return self.p > 0.01

    @property
    def verdict(self) -> str:
        share = np.concatenate([ranks.ravel() for ranks in self.ranks.values()]) / self.num_draws
        outer = float(((share < 0.1) | (share > 0.9)).mean())
        spread = "too narrow" if outer > 0.2 else "too wide"
        simulations = len(next(iter(self.ranks.values())))
        means = "no miscalibration found"
        if not self.is_good:
            means = (
                f"{outer:.0%} of true gates are in the outer fifth of their posteriors, which are "
                f"{spread} on average"
            )
            if abs(share.mean() - 0.5) > 3 / math.sqrt(12 * simulations):
                shift = "low" if share.mean() > 0.5 else "high"
                means += f"; the mean rank is {share.mean():.2f}: they lie too {shift}"
        return (
            f"chi-square p {self.p:.2g} over {simulations} simulations, Bonferroni over channels, "
            f"threshold 0.01 (Talts et al., 2018; of variational posteriors Yao et al., ICML "
            f"2018): {means}"
        )

    def to_frame(self) -> pd.DataFrame:
        parts = [
            pd.DataFrame(
                {
                    "layer": name,
                    "channel": range(ranks.shape[1]),
                    "p": self.p_values[name],
                    "mean_rank": ranks.mean(0) / self.num_draws,
                    "sd_rank": ranks.std(0) / self.num_draws,
                }
            )
            for name, ranks in self.ranks.items()
        ]
        return pd.concat(parts, ignore_index=True)


def simulation_based_calibration(
    switched: SwitchedNetwork,
    simulate: Simulate,
    fit: Fit,
    *,
    num_simulations: int = 200,
    num_draws: int = 99,
    bins: int = 10,
    seed: int = 0,
    progress: bool = True,
) -> Calibration:
    """Draw gates from the prior, make data with them, fit, and rank the truth among the draws.

    Parameters
    ----------
    switched : SwitchedNetwork
        Of which the prior is taken; it is not fitted.
    simulate : callable
        ``simulate(gates, seed)`` gives a loader of data that the network makes with these gates.
    fit : callable
        ``fit(loader, seed)`` gives the `SwitchPosterior` of a fresh `SwitchedNetwork`.
    num_simulations : int
        Data sets, at least 5 per bin.
    num_draws : int
        Of each posterior.
    bins : int
        Of the rank histograms, at least 2; must divide ``num_draws + 1``.
    seed : int
    progress : bool
        Whether to show a bar.

    Returns
    -------
    Calibration

    Raises
    ------
    ConfigError
        If a prior is improper, a KL weight is not 1, or a number is out of range.
    PlanError
        If a fit returns a posterior of other groups.

    References
    ----------
    Talts, Betancourt, Simpson, Vehtari and Gelman, "Validating Bayesian inference algorithms with
    simulation-based calibration", 2018; Yao et al., ICML 2018, section 3.
    """
    check_integer("bins", bins, least=2)
    check_integer("num_draws", num_draws)
    check_integer("num_simulations", num_simulations, least=5 * bins)
    if (num_draws + 1) % bins:
        raise ConfigError(
            f"bins: expected a divisor of num_draws + 1 = {num_draws + 1}, got {bins}"
        )
    check_posterior(switched, "simulation_based_calibration")
    device, items = device_of(switched), copy.deepcopy(dict(switched.guide.items()))
    for switch in items.values():
        switch.anneal(1.0)  # the prior at the end of a fit
    with seeded(seed, device):
        truths = {name: switch.prior_sample(num_simulations) for name, switch in items.items()}
    truths = {name: gates.detach() for name, gates in truths.items()}
    ranks: dict[str, list[np.ndarray]] = {name: [] for name in items}
    generator = np.random.default_rng(seed)
    for number in shown(range(num_simulations), "calibration", progress):
        truth = {name: gates[number] for name, gates in truths.items()}
        # Seeds of their own: with one for both, the draws would repeat the noise of the data.
        seeds = [int(s) for s in np.random.SeedSequence([seed, number]).generate_state(3)]
        posterior = fit(simulate(truth, seeds[0]), seeds[1])
        draws = posterior.sample(num_draws, seeds[2])
        for name, rank in _ranks(truth, draws, generator).items():
            ranks[name].append(rank)
    return Calibration({name: np.stack(rank) for name, rank in ranks.items()}, num_draws, bins)


def _ranks(
    truth: Mapping[str, Tensor], draws: Mapping[str, Tensor], generator: np.random.Generator
) -> dict[str, np.ndarray]:
    found = {}
    for name, true in truth.items():
        if name not in draws or draws[name].shape[1:] != true.shape:
            have = {name: gates.shape[1] for name, gates in draws.items()}
            raise PlanError(
                f"fit: expected a posterior of {len(true)} channels of {name}, got {have}"
            )
        true = true.cpu()
        below, equal = draws[name] < true, draws[name] == true
        # Among equals any place is as good: exact zeros of discrete gates, or a single share.
        ties = torch.as_tensor(generator.integers(0, equal.sum(0).numpy() + 1))
        found[name] = (below.sum(0) + ties).numpy()
    return found
