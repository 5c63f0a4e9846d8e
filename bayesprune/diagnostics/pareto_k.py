"""Pareto k-hat: how near the guide is to the posterior."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from bayesprune._arviz import pareto_smooth
from bayesprune._checks import check_integer
from bayesprune._modes import evaluating, seeded
from bayesprune.batches import Loader
from bayesprune.diagnostics._diagnostic import Diagnostic, shown
from bayesprune.diagnostics._joint import (
    check_density,
    device_of,
    gates_of,
    log_likelihood,
    whole,
)
from bayesprune.errors import FitError
from bayesprune.network import SwitchedNetwork


@dataclass(frozen=True, repr=False)
class ParetoK(Diagnostic):
    """Shape of the tail of importance weights from the guide to the posterior.

    Attributes
    ----------
    k : float
        k-hat, over all groups jointly.
    num_draws : int
        Draws behind it.
    latents : int
        Number of latent variables.
    elbo : float
        Mean log weight: the evidence lower bound, in nats of the data set.
    log_evidence : float
        Log of the mean smoothed weight, which estimates log p(data) where k-hat is good.
    ess : float
        Effective number of draws of the smoothed weights.
    """

    k: float
    num_draws: int
    latents: int
    elbo: float
    log_evidence: float
    ess: float

    @property
    def threshold(self) -> float:
        """Largest k-hat with reliable estimates: min(1 - 1 / log10(number of draws), 0.7)."""
        return min(1 - 1 / math.log10(self.num_draws), 0.7)

    @property
    def is_good(self) -> bool:
        """Whether k-hat is below the threshold."""
        return self.k < self.threshold

    @property
    def verdict(self) -> str:
        means = (
            "the guide is close enough to the posterior for importance sampling to correct it"
            if self.is_good
            else "the guide misses the posterior; do not take its spread and its tails for true"
        )
        return (
            f"k-hat {self.k:.2f} over {self.latents} latent variables, good below "
            f"{self.threshold:.2g} (Vehtari et al., JMLR 2024; Yao et al., ICML 2018): {means}"
        )

    def to_frame(self) -> pd.DataFrame:
        columns = {
            "k-hat": self.k,
            "threshold": self.threshold,
            "draws": self.num_draws,
            "latents": self.latents,
            "elbo": self.elbo,
            "log evidence": self.log_evidence,
            "effective draws": self.ess,
        }
        return pd.DataFrame([columns])


def pareto_k(
    switched: SwitchedNetwork,
    loader: Loader,
    *,
    num_draws: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> ParetoK:
    """Pareto-smoothed importance sampling from a fitted guide to the posterior.

    Latent variables of all groups are drawn together; each draw runs the network on the whole data
    set once. k-hat judges the joint distribution: it grows with the number of latent variables, and
    marginals can be good where it is not.

    Parameters
    ----------
    switched : SwitchedNetwork
        After `fit_switches`, with fixed weights.
    loader : DataLoader
        All of the data it was fitted to, batch by batch; nothing is kept.
    num_draws : int
        At least 100.
    seed : int
    progress : bool
        Whether to show a bar.

    Returns
    -------
    ParetoK

    Raises
    ------
    ConfigError
        If a prior is improper, a KL weight is not 1, the weights have a posterior, or `num_draws`
        is below 100.
    DataError
        If the loader does not hold `num_data` examples.
    FitError
        If a log weight is not finite.

    References
    ----------
    Vehtari, Simpson, Gelman, Yao and Gabry, "Pareto smoothed importance sampling", JMLR 2024; Yao,
    Vehtari, Simpson and Gelman, "Yes, but did it work?: Evaluating variational inference", ICML
    2018.
    """
    check_integer("num_draws", num_draws, least=100)
    check_density(switched, "pareto_k")
    device = device_of(switched)
    values: dict[str, Any] = {}
    with evaluating(switched):
        log_weights = torch.zeros(num_draws, dtype=torch.double, device=device)
        with seeded(seed, device):
            for name, switch in switched.guide.items():
                values[name] = {}
                for site_name, site in switch.sites().items():
                    drawn = site.factor.sample((num_draws,))
                    values[name][site_name] = drawn
                    log_weights += site.prior.log_prob(drawn) - site.factor.log_prob(drawn)
        gates = gates_of(switched, values)
        batches = len(loader)
        for batch in shown(whole(switched, loader, "pareto_k"), "k-hat", progress, batches):
            for draw in range(num_draws):
                one = {name: gate[draw] for name, gate in gates.items()}
                log_weights[draw] += log_likelihood(switched, one, batch)
    found = log_weights.cpu().numpy()
    if not np.isfinite(found).all():
        raise FitError(
            f"pareto_k: expected finite log weights, got {(~np.isfinite(found)).sum()} of "
            f"{num_draws} draws without"
        )
    smoothed, k = pareto_smooth(found)
    # Smoothing replaces the largest weights; the smallest keeps its value, which fixes the scale.
    lowest = int(found.argmin())
    log_sum = found[lowest] - smoothed[lowest]
    return ParetoK(
        k=k,
        num_draws=num_draws,
        latents=sum(v[0].numel() for sites in values.values() for v in sites.values()),
        elbo=float(found.mean()),
        log_evidence=float(log_sum - math.log(num_draws)),
        ess=float(1 / np.exp(2 * smoothed).sum()),
    )
