"""Log-normal switches: structured Bayesian pruning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pyro.nn.module import PyroParam
from torch import Tensor

from bayesprune.distributions import LogUniform, TruncatedLogNormal
from bayesprune.errors import ConfigError
from bayesprune.switches._switch import Site, Switch, within

LOW, HIGH = -20.0, 0.0
"""Range of the log gate, as in the paper."""


class LogNormal(Switch):
    r"""Multiplicative noise :math:`z` with a log-uniform prior, structured Bayesian pruning.

    A priori :math:`\log z \sim U[-20, 0]`; the factor is :math:`N(\mu, \sigma^2)` truncated to the
    same range. Moments, quantiles and the divergence are in closed form. The score is the signal to
    noise ratio :math:`E z / \mathrm{sd} z`, and channels below 1 go. The prior does not change with
    the scale of a gate, so weights may be trained along.

    Parameters
    ----------
    init_sd : float
        Initial :math:`\sigma > 0`; :math:`\mu` starts from 0.

    Raises
    ------
    ConfigError
        If `init_sd` is not above 0.

    References
    ----------
    Neklyudov, Molchanov, Ashukha and Vetrov, "Structured Bayesian Pruning via Log-Normal
    Multiplicative Noise", NeurIPS 2017. `evidence`: Wright, Igel and Selvan, "BMRS: Bayesian Model
    Reduction for Structured Pruning", NeurIPS 2024.
    """

    reference = "Neklyudov et al., NeurIPS 2017"
    ranks_by = "the signal to noise ratio of the gate"

    def __init__(self, init_sd: float = 0.0067) -> None:
        super().__init__()
        if not 0 < init_sd < math.inf:
            raise ConfigError(f"LogNormal: init_sd must be above 0, got {init_sd!r}")
        self.init_sd = init_sd

    def initialise(self, keep: float | None) -> None:
        self.loc: Any = PyroParam(torch.zeros(self.size))
        self.log_scale: Any = PyroParam(torch.full((self.size,), math.log(self.init_sd)))

    def _factor(self) -> TruncatedLogNormal:
        loc = within(-20, 5, self.loc)
        return TruncatedLogNormal(loc, within(-20, 5, self.log_scale).exp(), LOW, HIGH)

    def sites(self) -> dict[str, Site]:
        prior = LogUniform(torch.full_like(self.loc, LOW), HIGH)
        return {"gate": Site(prior.to_event(1), self._factor().to_event(1))}

    def gate(self, values: Mapping[str, Tensor]) -> Tensor:
        return values["gate"]

    def mean(self) -> Tensor:
        return self._factor().mean.detach()

    def sd(self) -> Tensor:
        return self._factor().variance.detach().sqrt()

    def quantile(self, q: float) -> Tensor:
        return self._factor().icdf(torch.full_like(self.loc, q)).detach()

    def probability_below(self, threshold: float) -> Tensor:
        inside = min(max(threshold, math.exp(LOW)), math.exp(HIGH))
        return self._factor().cdf(torch.full_like(self.loc, inside)).detach()

    def importance(self) -> Tensor:
        """Signal to noise ratio."""
        return self._factor().snr.detach()

    def threshold(self) -> float:
        return 1.0

    def active_probability(self) -> Tensor:
        snr = self._factor().snr
        return 1 / (1 + snr.pow(-2))

    def evidence(self, bits: int | None = None) -> Tensor:
        factor = self._factor()
        loc, scale = factor.loc.detach().double(), factor.scale.detach().double()
        if bits is None:
            return _reduced_to_the_end(loc, scale).to(self.loc)
        ends = [torch.full_like(self.loc, 2.0**-power) for power in (23, bits)]
        low, high = (factor.cdf(end).detach().double() for end in ends)
        uniform = (23 - bits) * math.log(2) / (HIGH - LOW)
        return ((high - low).log() - math.log(uniform)).clamp_min(-1e6).to(self.loc)


def _reduced_to_the_end(loc: Tensor, scale: Tensor, width: float = 1e-6) -> Tensor:
    """BMRS_N: the reduced prior of the log gate is N(LOW, width²), truncated like the others."""

    def log_mass(loc: Tensor, scale: Tensor) -> Tensor:
        low, high = (LOW - loc) / scale, (HIGH - loc) / scale
        # In the tail where neither is close to 1.
        low, high = torch.where(low > 0, -high, low), torch.where(low > 0, -low, high)
        above, below = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
        return above + torch.log1p(-(below - above).exp())

    end = torch.full_like(loc, LOW)
    variance = scale.square() + width**2
    product = 1 / (scale.pow(-2) + width**-2)  # variance of the two normals' product
    mean = product * (loc / scale.square() + LOW / width**2)
    overlap = -0.5 * ((end - loc).square() / variance + (2 * math.pi * variance).log())
    masses = log_mass(end, torch.full_like(loc, width)) + log_mass(loc, scale)
    return overlap + log_mass(mean, product.sqrt()) - masses + math.log(HIGH - LOW)
