"""Multiplicative noise between fixed bounds: truncated log-normal, and log-uniform."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import constraints
from torch import Size, Tensor
from torch.types import _size

from bayesprune.distributions._univariate import Univariate
from bayesprune.distributions.truncated_normal import TruncatedNormal


class TruncatedLogNormal(Univariate):
    r"""Distribution of :math:`\theta = e^u` for :math:`u \sim N(\mu, \sigma^2)` on :math:`[a, b]`.

    The noise of Neklyudov et al., Structured Bayesian Pruning via Log-Normal Multiplicative Noise,
    NeurIPS 2017. Moments and their gradients hold for any :math:`\mu` and any positive
    :math:`\sigma`, also where the difference of the raw moments is lost in rounding.

    Parameters
    ----------
    loc, scale : Tensor or float
        Mean and standard deviation of :math:`\log\theta` before truncation.
    low, high : Tensor or float
        Bounds of :math:`\log\theta`; constants.
    """

    arg_constraints: dict[str, Any] = TruncatedNormal.arg_constraints  # type: ignore[assignment]
    has_rsample = True
    loc: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        loc: Tensor | float,
        scale: Tensor | float,
        low: Tensor | float = -20.0,
        high: Tensor | float = 0.0,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(validate_args, loc=loc, scale=scale, low=low, high=high)
        if self._validate_args and not (self.low < self.high).all():
            raise ValueError(f"TruncatedLogNormal: expected low < high, got {low} and {high}")

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> Any:  # type: ignore[override]
        return constraints.interval(self.low.exp(), self.high.exp())

    @property
    def log(self) -> TruncatedNormal:
        r"""The distribution of :math:`\log\theta`."""
        return TruncatedNormal(self.loc, self.scale, self.low, self.high, validate_args=False)

    def rsample(self, sample_shape: _size = Size()) -> Tensor:
        """Draw with exact pathwise gradients; shape ``sample_shape + batch_shape``."""
        return self._exp(self.log.rsample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        log_value = self._log(value)
        return self.log.log_prob(log_value) - log_value

    def cdf(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.log.cdf(self._log(value))

    def icdf(self, value: Tensor) -> Tensor:
        return self._exp(self.log.icdf(value))

    def entropy(self) -> Tensor:
        r"""Differential entropy of :math:`\theta` in nats; that of its logarithm: `log.entropy`."""
        return self.log.entropy() + self.log.mean

    @property
    def mean(self) -> Tensor:
        log_mean, _ = self._moments()
        return log_mean.exp().to(self.loc.dtype)

    @property
    def variance(self) -> Tensor:
        log_mean, ratio = self._moments()
        return ((2 * log_mean).exp() * ratio).to(self.loc.dtype)

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio: the mean over the standard deviation."""
        _, ratio = self._moments()
        return ratio.rsqrt().to(self.loc.dtype)

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Logarithm of the mean, and the variance over the squared mean."""
        rule = self.log.quadrature(tilts=2)
        mass = rule.log_mass.exp()
        log_mean = (mass * rule.offset.expm1()).sum(-1).log1p()
        deviation = (rule.offset - log_mean.unsqueeze(-1)).expm1()
        return rule.peak + log_mean, (mass * deviation**2).sum(-1)

    def _exp(self, log_value: Tensor) -> Tensor:
        return log_value.exp().clamp(self.low.exp(), self.high.exp())

    def _log(self, value: Tensor) -> Tensor:
        return value.log().clamp(self.low, self.high)


class LogUniform(Univariate):
    r"""Distribution of :math:`\theta` whose logarithm is uniform on :math:`[a, b]`.

    Parameters
    ----------
    low, high : Tensor or float
        Bounds of :math:`\log\theta`.
    """

    arg_constraints: dict[str, Any] = {  # type: ignore[assignment]
        "low": constraints.real,
        "high": constraints.real,
    }
    has_rsample = True
    low: Tensor
    high: Tensor

    def __init__(
        self, low: Tensor | float, high: Tensor | float, validate_args: bool | None = None
    ) -> None:
        super().__init__(validate_args, low=low, high=high)
        if self._validate_args and not (self.low < self.high).all():
            raise ValueError(f"LogUniform: expected low < high, got {low} and {high}")

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> Any:  # type: ignore[override]
        return constraints.interval(self.low.exp(), self.high.exp())

    def rsample(self, sample_shape: _size = Size()) -> Tensor:
        """Draw with gradients; shape ``sample_shape + batch_shape``."""
        return self.icdf(torch.rand_like(self.low.expand(self._extended_shape(sample_shape))))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return -value.log() - (self.high - self.low).log()

    def cdf(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return ((value.log() - self.low) / (self.high - self.low)).clamp(0, 1)

    def icdf(self, value: Tensor) -> Tensor:
        log_value = self.low + value * (self.high - self.low)
        return log_value.exp().clamp(self.low.exp(), self.high.exp())

    @property
    def mean(self) -> Tensor:
        low, high = self.low.double(), self.high.double()
        return (high.exp() * -(low - high).expm1() / (high - low)).to(self.low.dtype)

    @property
    def variance(self) -> Tensor:
        low, high = self.low.double(), self.high.double()
        half = (high - low) / 2
        mean = high.exp() * -(low - high).expm1() / (high - low)
        return (mean**2 * (half / half.tanh() - 1)).to(self.low.dtype)
