"""Logistic-normal switches: shares with correlations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn.module import PyroParam
from torch import Tensor

from bayesprune.distributions import LogGamma
from bayesprune.errors import ConfigError
from bayesprune.switches._simplex import SimplexSwitch, Total
from bayesprune.switches._switch import Site, at_least


class LogisticNormal(SimplexSwitch):
    r"""Importance shares :math:`s = \mathrm{softmax}(u)`, gates :math:`z = m s`.

    The prior of :math:`u` is a vector of independent log-gamma variates, under which :math:`s` is
    exactly :math:`\mathrm{Dir}(\alpha_0 1_C)`; the factor of :math:`u` is Gaussian. The divergence
    between the two is in closed form and bounds the one between shares from above. Under
    `AnalyticMean` the gate is taken at the mean of :math:`u`.

    Parameters
    ----------
    concentration : float
        :math:`\alpha_0 > 0`.
    total : {"size", "keep", "anneal"} or float
        The gate mass m, see `SimplexSwitch`.
    rank : int or "full"
        Covariance of the factor: 0 for a diagonal one, r for diagonal plus rank r, or "full".
    init_sd : float
        Initial standard deviation of every :math:`u_i`.

    Raises
    ------
    ConfigError
        If a hyper-parameter is out of range.

    References
    ----------
    Aitchison and Shen, "Logistic-normal distributions: some properties and uses", Biometrika 1980.
    """

    reference = "Aitchison and Shen, Biometrika 1980"

    def __init__(
        self,
        concentration: float = 0.1,
        total: Total = "size",
        rank: int | Literal["full"] = 0,
        init_sd: float = 0.3,
    ) -> None:
        super().__init__(total)
        if not (0 < concentration < math.inf and 0 < init_sd < math.inf):
            raise ConfigError(
                "LogisticNormal: concentration and init_sd must be positive, "
                f"got {concentration}, {init_sd}"
            )
        if rank != "full" and not (isinstance(rank, int) and rank >= 0):
            raise ConfigError(
                f"LogisticNormal: rank must be 'full' or an integer of at least 0, got {rank!r}"
            )
        self.concentration = concentration
        self.rank: int | Literal["full"] = rank
        self.init_sd = init_sd

    def initialise(self, keep: float | None) -> None:
        super().initialise(keep)
        self.loc: Any = PyroParam(torch.zeros(self.size))
        if self.rank == "full":
            self.scale_tril: Any = PyroParam(
                self.init_sd * torch.eye(self.size), constraints.softplus_lower_cholesky
            )
            return
        self.scale: Any = PyroParam(
            torch.full((self.size,), self.init_sd), constraints.softplus_positive
        )
        if self.rank:
            # Zero columns would be a saddle point; a fixed pattern keeps binding deterministic.
            grid = torch.arange(self.size)[:, None] * torch.arange(1, self.rank + 1)
            self.cov_factor: Any = PyroParam(1e-2 * torch.cos(grid.to(self.loc.dtype)))

    def sites(self) -> dict[str, Site]:
        loc = self.loc
        unchecked: Any = {"validate_args": False}
        if self.rank == "full":
            factor = dist.MultivariateNormal(loc, scale_tril=self.scale_tril, **unchecked)
        elif self.rank:
            variance = at_least(1e-3, self.scale).square()
            factor = dist.LowRankMultivariateNormal(loc, self.cov_factor, variance, **unchecked)
        else:
            factor = dist.Normal(loc, at_least(1e-3, self.scale), **unchecked).to_event(1)
        prior = LogGamma(torch.full_like(loc, self.concentration), **unchecked).to_event(1)
        return {"log_mass": Site(prior, factor)}

    def gate(self, values: Mapping[str, Tensor]) -> Tensor:
        return self.mass * values["log_mass"].softmax(-1)
