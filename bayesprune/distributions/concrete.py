"""The relaxed Bernoulli variable, with its moments."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import constraints
from torch import Size, Tensor
from torch.distributions.utils import clamp_probs
from torch.nn.functional import logsigmoid
from torch.types import _size

from bayesprune.distributions._univariate import Univariate

_STEP = 0.5  # of the trapezoidal rule
_REACH = 38.0  # exp(-38) is below rounding


class Concrete(Univariate):
    r"""Distribution of :math:`z` with :math:`\mathrm{logit}\, z = (\lambda + \ell) / T`.

    Here :math:`\ell` is standard logistic, so that :math:`P(z > 1/2) = \mathrm{sigmoid}(\lambda)`
    at any temperature T. Maddison, Mnih & Teh, The Concrete Distribution, ICLR 2017. The same law
    as PyTorch's `RelaxedBernoulli`, with mean, variance, cdf and quantiles. Samples keep off the
    ends of the interval by the rounding unit.

    Parameters
    ----------
    logits : Tensor or float
        :math:`\lambda`, the log odds of the Bernoulli variable that is relaxed.
    temperature : Tensor or float
        T, positive.
    """

    arg_constraints: dict[str, Any] = {  # type: ignore[assignment]
        "logits": constraints.real,
        "temperature": constraints.positive,
    }
    support = constraints.unit_interval  # type: ignore[assignment]
    has_rsample = True
    logits: Tensor
    temperature: Tensor

    def __init__(
        self,
        logits: Tensor | float,
        temperature: Tensor | float = 0.5,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(validate_args, logits=logits, temperature=temperature)

    def rsample(self, sample_shape: _size = Size()) -> Tensor:
        """Draw with gradients; shape ``sample_shape + batch_shape``."""
        shape = self._extended_shape(sample_shape)
        return self.icdf(torch.rand_like(self.logits.expand(shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        value = clamp_probs(value)
        below = self.temperature * value.logit() - self.logits  # logit of P(z <= value)
        log_slope = self.temperature.log() - value.log() - torch.log1p(-value)
        return logsigmoid(below) + logsigmoid(-below) + log_slope

    def cdf(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return (self.temperature * clamp_probs(value).logit() - self.logits).sigmoid()

    def icdf(self, value: Tensor) -> Tensor:
        logit = (clamp_probs(value).logit() + self.logits) / self.temperature
        return clamp_probs(logit.sigmoid())

    @property
    def mean(self) -> Tensor:
        first, _ = self._moments(self.logits.double())
        return first.to(self.logits.dtype)

    @property
    def variance(self) -> Tensor:
        # z and 1 - z have the same variance; that of the smaller one does not cancel.
        first, second = self._moments(-self.logits.double().abs())
        return (second - first**2).to(self.logits.dtype)

    def _moments(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Integrate smoothly at every temperature, by a rule that is exact to rounding.

        The integrands are analytic within a distance of pi of the real line and decay
        exponentially; there the error of the trapezoidal rule is exp(-2 pi^2 / step).
        """
        x = torch.arange(-_REACH, _REACH + _STEP, _STEP, dtype=torch.double, device=logits.device)
        weight = _STEP * x.sigmoid() * (-x).sigmoid()
        logits, temperature = logits.unsqueeze(-1), self.temperature.double().unsqueeze(-1)
        # Up to temperature 1 the integral over t of P(z > t) and of 2 t P(z > t), with logit t = x;
        # above, the mean over the noise x.
        cool = temperature <= 1
        survival = (logits - torch.where(cool, temperature, 1.0) * x).sigmoid()
        value = ((logits + x) / torch.where(cool, 1.0, temperature)).sigmoid()
        first = torch.where(cool, survival, value)
        second = torch.where(cool, 2 * x.sigmoid() * survival, value**2)
        return (weight * first).sum(-1), (weight * second).sum(-1)
