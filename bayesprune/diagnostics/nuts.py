"""The gold standard for small problems: the posterior of the switches by NUTS."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyro
import torch
import xarray as xr
from pyro import poutine
from pyro.infer import MCMC, NUTS
from scipy.stats import wasserstein_distance
from torch import Tensor

from bayesprune._arviz import container, ess, rhat, switch_coords
from bayesprune._checks import check_integer
from bayesprune._modes import evaluating, seeded
from bayesprune.batches import Loader
from bayesprune.diagnostics._diagnostic import LARGEST_RHAT, Diagnostic, has_display
from bayesprune.diagnostics._joint import (
    check_density,
    device_of,
    gates_of,
    log_likelihood,
    whole,
)
from bayesprune.errors import ConfigError, FitError, PlanError
from bayesprune.network import SwitchedNetwork
from bayesprune.posterior import SwitchPosterior

MOST_LATENTS = 500
"""More latent variables than this take NUTS hours in Python."""


@dataclass(frozen=True, repr=False)
class NutsReference(Diagnostic):
    """Gates drawn by NUTS, and whether the chains can be trusted.

    Attributes
    ----------
    draws : dict of str to Tensor
        Gates, shape ``(chains, draws, C)`` per group.
    divergences : int
        Divergent transitions after warm-up, in all chains.
    """

    draws: dict[str, Tensor]
    divergences: int

    @property
    def mean(self) -> dict[str, Tensor]:
        """Posterior mean of each gate, shape ``(C,)``."""
        return {name: gates.mean((0, 1)) for name, gates in self.draws.items()}

    @property
    def sd(self) -> dict[str, Tensor]:
        """Posterior standard deviation of each gate, shape ``(C,)``."""
        return {name: gates.flatten(0, 1).std(0) for name, gates in self.draws.items()}

    @property
    def rhat(self) -> dict[str, np.ndarray]:
        """Rank-normalised split R-hat of each gate, shape ``(C,)``; NaN where it does not vary."""
        return {name: rhat(gates.numpy()) for name, gates in self.draws.items()}

    @property
    def ess(self) -> dict[str, np.ndarray]:
        """Bulk effective sample size of each gate, shape ``(C,)``."""
        return {name: ess(gates.numpy()) for name, gates in self.draws.items()}

    @property
    def threshold(self) -> float:
        """The largest good R-hat, 1.01."""
        return LARGEST_RHAT

    @property
    def is_good(self) -> bool:
        """Whether all chains agree, are long enough and have no divergence."""
        worst, least = self._worst()
        return worst <= self.threshold and least >= 100 * self._chains() and self.divergences == 0

    def _chains(self) -> int:
        return len(next(iter(self.draws.values())))

    def _worst(self) -> tuple[float, float]:
        rhats = np.concatenate(list(self.rhat.values()))
        varies = ~np.isnan(rhats)  # the share of a single channel does not
        sizes = np.concatenate(list(self.ess.values()))
        return rhats[varies].max(initial=1.0), sizes[varies].min(initial=math.inf)

    @property
    def verdict(self) -> str:
        worst, least = self._worst()
        means = "the chains can serve as reference" if self.is_good else "do not rely on them"
        return (
            f"largest R-hat {worst:.3f} (at most {self.threshold}), least effective size "
            f"{least:.0f} (at least 100 per chain, {100 * self._chains()}; both Vehtari et al., "
            f"Bayesian Analysis 2021), {self.divergences} divergences (0): {means}"
        )

    def to_frame(self) -> pd.DataFrame:
        mean, sd, rhats, sizes = self.mean, self.sd, self.rhat, self.ess
        parts = [
            pd.DataFrame(
                {
                    "layer": name,
                    "channel": range(len(mean[name])),
                    "mean": mean[name].numpy(),
                    "sd": sd[name].numpy(),
                    "r_hat": rhats[name],
                    "ess": sizes[name],
                }
            )
            for name in self.draws
        ]
        return pd.concat(parts, ignore_index=True)

    def to_arviz(self) -> Any:
        """The draws for ArviZ, named as `SwitchPosterior.to_arviz` names them."""
        gates = torch.cat(list(self.draws.values()), -1).numpy()
        units = {name: np.arange(draws.shape[-1]) for name, draws in self.draws.items()}
        dims = ("chain", "draw", "switch")
        dataset = xr.Dataset({"gate": (dims, gates)}, coords=switch_coords(units))
        return container({"posterior": dataset})

    def compare(
        self, posterior: SwitchPosterior, truth: Mapping[str, Tensor] | None = None
    ) -> NutsComparison:
        """How far a variational posterior is from this one, channel by channel.

        Parameters
        ----------
        posterior : SwitchPosterior
            Of the same groups.
        truth : mapping of str to Tensor, optional
            The gates that made the data, shape ``(C,)``, if they are known.

        Raises
        ------
        PlanError
            If the posterior, or the truth, is of other groups.
        """
        sizes = {name: draws.shape[-1] for name, draws in self.draws.items()}
        for what, given in (("posterior", posterior.mean), ("truth", truth)):
            if given is not None and {n: len(v) for n, v in given.items()} != sizes:
                raise PlanError(
                    f"compare: expected a {what} of the groups {sizes}, got "
                    f"{ {n: len(v) for n, v in given.items()} }"
                )
        low, high = posterior.quantile(0.025), posterior.quantile(0.975)
        drawn = posterior.sample(math.prod(next(iter(self.draws.values())).shape[:2]))
        parts = []
        for name, draws in self.draws.items():
            gold = draws.flatten(0, 1)
            mean, sd = gold.mean(0), gold.std(0)
            inside = (gold >= low[name]) & (gold <= high[name])
            distance = [
                wasserstein_distance(a, b)
                for a, b in zip(gold.T.numpy(), drawn[name].T.numpy(), strict=True)
            ]
            columns = {
                "layer": name,
                "channel": posterior.channels[name].numpy(),
                "gold_mean": mean.numpy(),
                "gold_sd": sd.numpy(),
                "mean": posterior.mean[name].numpy(),
                "sd": posterior.sd[name].numpy(),
                "mean_error": ((posterior.mean[name] - mean) / sd).numpy(),
                "sd_ratio": (posterior.sd[name] / sd).numpy(),
                "wasserstein": np.array(distance) / sd.numpy(),
                "coverage": inside.float().mean(0).numpy(),
                "covers_mean": ((mean >= low[name]) & (mean <= high[name])).numpy(),
            }
            if truth is not None:
                covered = (truth[name] >= low[name]) & (truth[name] <= high[name])
                columns["covers_truth"] = covered.numpy()
            parts.append(pd.DataFrame(columns))
        return NutsComparison(pd.concat(parts, ignore_index=True))


@dataclass(frozen=True, repr=False, eq=False)
class NutsComparison(Diagnostic):
    """A variational posterior beside one drawn by NUTS.

    Attributes
    ----------
    channels : DataFrame
        One row per channel: `layer`, `channel`, `gold_mean` and `gold_sd` by NUTS, `mean` and `sd`
        of the variational posterior; `mean_error`, their difference in gold standard deviations,
        `sd_ratio`, and `wasserstein`, the 1-Wasserstein distance of the two marginals in gold
        standard deviations; `coverage`, the share of NUTS draws inside the variational 95%
        interval, and whether that holds the gold mean (`covers_mean`) and the truth, where known
        (`covers_truth`).
    """

    channels: pd.DataFrame

    @property
    def verdict(self) -> str:
        table = self.channels
        coverage = float(table["coverage"].to_numpy().mean())
        means = "too narrow" if coverage < 0.93 else "too wide" if coverage > 0.97 else "right"
        truth = (
            f" and {table['covers_truth'].mean():.0%} of true gates"
            if "covers_truth" in table
            else ""
        )
        return (
            f"over {len(table)} channels, means {table['mean_error'].abs().mean():.2f} gold sd off "
            f"(largest {table['mean_error'].abs().max():.2f}), sd {table['sd_ratio'].mean():.2f} "
            f"times the gold sd, Wasserstein distance {table['wasserstein'].mean():.2f} gold sd; "
            f"95% intervals hold {coverage:.1%} of the NUTS draws{truth}: {means} (no published "
            "threshold; 93% to 97% is called right)"
        )

    def to_frame(self) -> pd.DataFrame:
        return self.channels


def nuts(
    switched: SwitchedNetwork,
    loader: Loader,
    *,
    num_draws: int = 1000,
    warmup: int = 500,
    chains: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> NutsReference:
    """Draw the switches of a network with fixed weights from their posterior, by NUTS.

    For small problems: every step of a trajectory runs the network, forwards and backwards, on the
    whole data set, which is held in memory. Chains follow each other in one process.

    Parameters
    ----------
    switched : SwitchedNetwork
        Its guide is not used.
    loader : DataLoader
        All of the data.
    num_draws, warmup : int
        Of each chain, at least 4 draws and 1 step of warm-up.
    chains : int
        At least 1.
    seed : int
    progress : bool
        Whether Pyro shows a bar per chain.

    Returns
    -------
    NutsReference

    Raises
    ------
    ConfigError
        If there are more than 500 latent variables or discrete ones, a prior is improper, a KL
        weight is not 1, the weights have a posterior, or a number is too small.
    DataError
        If the loader does not hold `num_data` examples.
    FitError
        If the sampler finds no valid start.

    References
    ----------
    Hoffman and Gelman, "The No-U-Turn Sampler", JMLR 2014; Vehtari, Gelman, Simpson, Carpenter and
    Bürkner, "Rank-normalization, folding, and localization: an improved R-hat", Bayesian Analysis
    2021.
    """
    check_integer("warmup", warmup)
    check_integer("chains", chains)
    check_integer("num_draws", num_draws, least=4)
    check_density(switched, "nuts")
    guide = switched.guide
    latents = 0
    for name, switch in guide.items():
        for site_name, site in switch.sites().items():
            support: Any = site.prior.support
            if support.is_discrete:
                raise ConfigError(f"nuts: expected continuous sites, {name}.{site_name} is not")
            latents += math.prod(site.prior.event_shape)
    if latents > MOST_LATENTS:
        raise ConfigError(
            f"nuts: expected at most {MOST_LATENTS} latent variables, got {latents}; it is meant "
            "for small problems"
        )
    batches = list(whole(switched, loader, "nuts"))

    def model() -> None:
        gates = guide.run(lambda site: site.prior)
        total = torch.stack([log_likelihood(switched, gates, batch) for batch in batches]).sum()
        pyro.factor("data", total)

    with evaluating(switched), torch.enable_grad(), seeded(seed, device_of(switched)):
        poutine.trace(model).get_trace()  # with Pyro's checks, which later take a third of the time
    drawn: dict[str, list[Tensor]] = {name: [] for name in guide.names}
    divergences, device = 0, device_of(switched)
    try:
        for chain in range(chains):
            with (
                evaluating(switched),
                torch.enable_grad(),
                seeded(seed + chain, device),
                pyro.validation_enabled(False),
            ):
                kernel = NUTS(model)
                hidden = not (progress and has_display())
                sampler = MCMC(kernel, num_draws, warmup_steps=warmup, disable_progbar=hidden)
                sampler.run()
            samples = sampler.get_samples()
            values = {
                name: {site: samples[f"{name}.{site}"] for site in switch.sites()}
                for name, switch in guide.items()
            }
            for name, gates in gates_of(switched, values).items():
                drawn[name].append(gates.detach().cpu())
            divergences += len(sampler.diagnostics()["divergences"]["chain 0"])
    except ValueError as error:
        raise FitError(f"nuts: no chain could be started: {error}") from error
    return NutsReference({name: torch.stack(gates) for name, gates in drawn.items()}, divergences)
