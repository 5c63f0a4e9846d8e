"""Bernoulli switches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.nn.module import PyroParam
from torch import Tensor

from bayesprune.distributions import NonzeroPenalty
from bayesprune.errors import ConfigError
from bayesprune.estimators import ARM, Estimator
from bayesprune.switches._switch import Site, Switch, within


class Bernoulli(Switch):
    r"""Gates that are 0 or 1, with :math:`P(z = 1) = \sigma(k \varphi)`.

    The penalty is :math:`\lambda |g| P(z = 1)` with :math:`|g|` the number of weights that produce
    the unit, an :math:`L_0` norm without a prior distribution behind it. Draws have no gradient:
    fit with `ARM` or `AR`. The score is :math:`k \varphi`, and channels below 0 go.

    Parameters
    ----------
    penalty : float
        :math:`\lambda > 0`, in nats of the data set per weight.
    slope : float
        :math:`k > 0`: a steep sigmoid brings the probabilities to 0 or 1.
    init_probability : float
        Initial probability in (0, 1) of a gate to be 1.

    Raises
    ------
    ConfigError
        If a value is out of range.

    References
    ----------
    Li and Ji, "L0-ARM: Network Sparsification via Stochastic Binary Optimization", ECML 2019.
    """

    reference = "Li and Ji, ECML 2019"
    interval_scale = True

    def __init__(
        self, penalty: float = 0.1, slope: float = 7.0, init_probability: float = 0.9
    ) -> None:
        super().__init__()
        if not (0 < penalty < math.inf and 0 < slope < math.inf):
            raise ConfigError(
                f"Bernoulli: penalty and slope must be above 0, got {penalty}, {slope}"
            )
        if not 0 < init_probability < 1:
            raise ConfigError(
                f"Bernoulli: init_probability must be in (0, 1), got {init_probability!r}"
            )
        self.penalty = penalty
        self.slope = slope
        self.init_probability = init_probability

    def initialise(self, keep: float | None) -> None:
        logit = math.log(self.init_probability / (1 - self.init_probability)) / self.slope
        self.phi: Any = PyroParam(torch.full((self.size,), logit))

    def _logits(self) -> Tensor:
        return within(-20, 20, self.slope * self.phi)

    def sites(self) -> dict[str, Site]:
        prior = NonzeroPenalty(torch.full_like(self.phi, self.penalty * self.fan_in))
        factor = dist.Bernoulli(logits=self._logits())
        return {"gate": Site(prior.to_event(1), factor.to_event(1))}

    def gate(self, values: Mapping[str, Tensor]) -> Tensor:
        return values["gate"]

    def estimator(self) -> Estimator:
        return ARM()

    def mean(self) -> Tensor:
        return self._logits().detach().sigmoid()

    def sd(self) -> Tensor:
        mean = self.mean()
        return (mean * (1 - mean)).sqrt()

    def quantile(self, q: float) -> Tensor:
        return (self.mean() > 1 - q).to(self.phi.dtype)

    def probability_below(self, threshold: float) -> Tensor:
        mean = self.mean()
        if threshold <= 0 or threshold > 1:
            return torch.full_like(mean, float(threshold > 1))
        return 1 - mean

    def importance(self) -> Tensor:
        """The logit of the probability that the gate is 1."""
        return self._logits().detach()

    def threshold(self) -> float:
        return 0.0

    def active_probability(self) -> Tensor:
        return self._logits().sigmoid()
