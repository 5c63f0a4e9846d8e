"""Spike-and-slab switches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.nn.module import PyroParam
from torch import Tensor

from bayesprune.distributions import Concrete
from bayesprune.errors import ConfigError
from bayesprune.switches._switch import Site, Switch, within
from bayesprune.switches.bayesian_group_lasso import BayesianGroupLasso


class SpikeAndSlab(Switch):
    r"""Gates :math:`z = \gamma s`: whether a channel is there at all, times a gate of the slab.

    A priori :math:`\gamma \sim \mathrm{Bernoulli}(\pi)`; the factor relaxes it to a concrete
    variate and takes the divergence of the Bernoulli variables, as the authors do. The slab is
    any other family: `BayesianGroupLasso` makes SS-GL, `Horseshoe` SS-GHS. The score is the logit
    of the inclusion probability, and channels below 0 go.

    Parameters
    ----------
    slab : Switch, optional
        A prototype; `BayesianGroupLasso` by default.
    prior_probability : float
        :math:`\pi` in (0, 1).
    temperature : float
        Of the concrete variate, above 0.
    init_probability : float
        Initial inclusion probability in (0, 1).

    Raises
    ------
    ConfigError
        If a value is out of range.

    References
    ----------
    Jantre, Bhattacharya and Maiti, "Spike-and-Slab Shrinkage Priors for Structurally Sparse
    Bayesian Neural Networks", IEEE TNNLS 2024.
    """

    reference = "Jantre et al., IEEE TNNLS 2024"
    ranks_by = "the logit of the inclusion probability"
    interval_scale = True

    def __init__(
        self,
        slab: Switch | None = None,
        prior_probability: float = 1e-3,
        temperature: float = 0.5,
        init_probability: float = 0.95,
    ) -> None:
        super().__init__()
        for name, value in (
            ("prior_probability", prior_probability),
            ("init_probability", init_probability),
        ):
            if not 0 < value < 1:
                raise ConfigError(f"SpikeAndSlab: {name} must be in (0, 1), got {value!r}")
        if not 0 < temperature < math.inf:
            raise ConfigError(f"SpikeAndSlab: temperature must be above 0, got {temperature!r}")
        self.slab: Any = BayesianGroupLasso() if slab is None else slab
        self.prior_probability = prior_probability
        self.temperature = temperature
        self.init_probability = init_probability

    @property
    def needs_keep(self) -> bool:
        return self.slab.needs_keep

    def initialise(self, keep: float | None) -> None:
        logit = math.log(self.init_probability / (1 - self.init_probability))
        self.logit: Any = PyroParam(torch.full((self.size,), logit))
        self.slab = self.slab.bind(self.size, keep, self.fan_in)

    def anneal(self, progress: float) -> None:
        self.slab.anneal(progress)

    def _inclusion(self) -> Concrete:
        return Concrete(within(-20, 20, self.logit), self.temperature)

    def sites(self) -> dict[str, Site]:
        probability = torch.full_like(self.logit, self.prior_probability)
        # Unchecked: it scores the relaxed values of the factor.
        prior = dist.Bernoulli(probability, validate_args=False)
        inclusion = Site(prior.to_event(1), self._inclusion().to_event(1))
        slab = {f"slab.{name}": site for name, site in self.slab.sites().items()}
        return {"inclusion": inclusion, **slab}

    def gate(self, values: Mapping[str, Tensor]) -> Tensor:
        slab = {name.removeprefix("slab."): v for name, v in values.items() if name != "inclusion"}
        return values["inclusion"] * self.slab.gate(slab)

    def mean(self) -> Tensor:
        return self._inclusion().mean.detach() * self.slab.mean()

    def sd(self) -> Tensor:
        inclusion, slab = self._inclusion(), self.slab
        spread = inclusion.variance * (slab.mean().square() + slab.sd().square())
        return (spread + inclusion.mean.square() * slab.sd().square()).sqrt().detach()

    def importance(self) -> Tensor:
        """The logit of the inclusion probability."""
        return within(-20, 20, self.logit).detach()

    def threshold(self) -> float:
        return 0.0

    def active_probability(self) -> Tensor:
        return within(-20, 20, self.logit).sigmoid()
