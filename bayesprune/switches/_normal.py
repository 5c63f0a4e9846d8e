"""What switches with a Gaussian factor share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.nn.module import PyroParam
from torch import Tensor

from bayesprune.errors import ConfigError
from bayesprune.switches._switch import Switch, within


class NormalSwitch(Switch):
    """Abstract: multiplicative Gaussian noise, scored by the log of squared mean over variance."""

    ranks_by = "the log of squared mean over variance of the gate"
    interval_scale = True

    def __init__(self, init_sd: float = 0.011) -> None:
        super().__init__()
        if not 0 < init_sd < math.inf:
            raise ConfigError(f"{type(self).__name__}: init_sd must be above 0, got {init_sd!r}")
        self.init_sd = init_sd

    def initialise(self, keep: float | None) -> None:
        self.loc: Any = PyroParam(torch.ones(self.size))
        self.log_scale: Any = PyroParam(torch.full((self.size,), math.log(self.init_sd)))

    def factor(self) -> dist.Normal:
        """The factor of the gates, batch shape ``(C,)``."""
        return dist.Normal(within(-1e3, 1e3, self.loc), within(-20, 5, self.log_scale).exp())

    def gate(self, values: Mapping[str, Tensor]) -> Tensor:
        return values["gate"]

    def mean(self) -> Tensor:
        return self.factor().mean.detach()

    def sd(self) -> Tensor:
        return self.factor().stddev.detach()

    def quantile(self, q: float) -> Tensor:
        return self.factor().icdf(torch.full_like(self.loc, q)).detach()

    def probability_below(self, threshold: float) -> Tensor:
        return self.factor().cdf(torch.full_like(self.loc, threshold)).detach()

    def importance(self) -> Tensor:
        """The log of squared mean over variance."""
        factor = self.factor()
        return ((factor.loc.square() + 1e-8).log() - 2 * factor.scale.log()).detach()

    def active_probability(self) -> Tensor:
        factor = self.factor()
        return factor.loc.square() / (factor.loc.square() + factor.variance)
