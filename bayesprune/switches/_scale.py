"""What switches with products of log-normal scales share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.nn.module import PyroParam
from torch import Tensor

from bayesprune.errors import ConfigError
from bayesprune.switches._switch import Site, Switch, within

REACH = 30.0
"""Largest absolute mean of a log scale: its exponential and the square of that are finite."""


class ScaleSwitch(Switch):
    r"""Abstract: gates :math:`z = \prod_j s_j^{1/2}` with log-normal factors for all scales.

    Then z is log-normal as well, so that its moments, quantiles and mode are in closed form. The
    score is the log of the mode; a channel goes whose score is nearer to the group's worst than to
    its best.

    Parameters
    ----------
    init_sd : float
        Initial standard deviation of every log scale, above 0.
    """

    ranks_by = "the log of the mode of the gate"
    interval_scale = True

    def __init__(self, init_sd: float) -> None:
        super().__init__()
        if not 0 < init_sd < math.inf:
            raise ConfigError(f"{type(self).__name__}: init_sd must be above 0, got {init_sd!r}")
        self.init_sd = init_sd

    def create(self, name: str, size: int, loc: float) -> None:
        """Variational parameters of `size` scales with mean log `loc`."""
        setattr(self, f"{name}_loc", PyroParam(torch.full((size,), loc)))
        log_sd = torch.full((size,), math.log(self.init_sd))
        setattr(self, f"{name}_log_sd", PyroParam(log_sd))

    def factor(self, name: str) -> dist.LogNormal:
        """The factor of the scales of this name."""
        loc: Any = getattr(self, f"{name}_loc")
        log_sd: Any = getattr(self, f"{name}_log_sd")
        # Unchecked: a draw may underflow to 0, which the support leaves out.
        spread = within(-15, 1, log_sd).exp()
        return dist.LogNormal(within(-REACH, REACH, loc), spread, validate_args=False)

    def root(self) -> dist.LogNormal:
        """The factor of the root of the product of all scales, batch shape ``(C,)``."""
        names = [site.removesuffix("_loc") for site in self._names()]
        scales = [self.factor(name) for name in names]
        loc = torch.zeros(self.size).to(self._any())
        variance = torch.zeros_like(loc)
        for scale in scales:
            loc, variance = loc + scale.loc / 2, variance + scale.scale.square() / 4
        return dist.LogNormal(loc, variance.sqrt())

    def _names(self) -> list[str]:
        return [name for name in self._pyro_params if name.endswith("_loc")]

    def _any(self) -> Tensor:
        return next(self.parameters())

    def gate(self, values: Mapping[str, Tensor]) -> Tensor:
        log = sum(value.clamp_min(torch.finfo(value.dtype).tiny).log() for value in values.values())
        assert isinstance(log, Tensor)
        return (log / 2).exp() + torch.zeros(self.size).to(log)

    def mean(self) -> Tensor:
        return self.root().mean.detach()

    def sd(self) -> Tensor:
        return self.root().stddev.detach()

    def quantile(self, q: float) -> Tensor:
        root: Any = self.root()
        return root.icdf(torch.full_like(root.loc, q)).detach()

    def probability_below(self, threshold: float) -> Tensor:
        if threshold <= 0:
            return torch.zeros(self.size).to(self._any())
        return self.root().cdf(torch.full_like(self.root().loc, threshold)).detach()

    def importance(self) -> Tensor:
        """The log of the mode of each gate."""
        root = self.root()
        return (root.loc - root.scale.square()).detach()

    def threshold(self) -> float:
        importance = self.importance()
        return ((importance.min() + importance.max()) / 2).item()

    def active_probability(self) -> Tensor:
        return (-self.root().scale.square()).exp()


def half_cauchy(switch: ScaleSwitch, name: str, scale: float) -> dict[str, Site]:
    r"""Sites of which the product is the square of half-Cauchy variates.

    :math:`\sqrt{ab} \sim C^+(0, k)` for :math:`b \sim \mathrm{InvGamma}(\frac12, 1)` and a Gamma
    variate :math:`a` of shape :math:`\frac12` and scale :math:`k^2`.
    """
    sites = {}
    half = torch.full_like(getattr(switch, f"{name}_a_loc"), 0.5)
    unchecked = {"validate_args": False}
    priors = {
        f"{name}_a": dist.Gamma(half, scale**-2, **unchecked),
        f"{name}_b": dist.InverseGamma(half, torch.ones_like(half), **unchecked),
    }
    for site, prior in priors.items():
        sites[site] = Site(prior.to_event(1), switch.factor(site).to_event(1))
    return sites
