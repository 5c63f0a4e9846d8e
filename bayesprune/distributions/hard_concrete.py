"""A gate with atoms at 0 and 1 and a density in between."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import constraints
from torch import Size, Tensor
from torch.distributions.utils import clamp_probs
from torch.nn.functional import logsigmoid
from torch.types import _size

from bayesprune.distributions._univariate import Univariate, gauss_legendre

_NODES = 96


class HardConcrete(Univariate):
    r"""Distribution of :math:`z = \min(1, \max(0, \gamma + (\zeta - \gamma)\, s))`, s concrete.

    With :math:`\mathrm{logit}\, s = (\log\alpha + \ell) / \beta` for standard logistic
    :math:`\ell`. Louizos, Welling & Kingma, Learning Sparse Neural Networks through L0
    Regularization, ICLR 2018.

    `mean` and `variance` are integrals of :math:`P(z > t)`, to 1e-10 for temperatures up to 5.

    Parameters
    ----------
    log_alpha : Tensor or float
        Location.
    temperature : Tensor or float
        :math:`\beta`, positive.
    low, high : Tensor or float
        :math:`\gamma < 0` and :math:`\zeta > 1`.
    """

    arg_constraints: dict[str, Any] = {  # type: ignore[assignment]
        "log_alpha": constraints.real,
        "temperature": constraints.positive,
        "low": constraints.less_than(0.0),
        "high": constraints.greater_than(1.0),
    }
    support = constraints.unit_interval  # type: ignore[assignment]
    has_rsample = True
    log_alpha: Tensor
    temperature: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        log_alpha: Tensor | float,
        temperature: Tensor | float = 2 / 3,
        low: Tensor | float = -0.1,
        high: Tensor | float = 1.1,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(
            validate_args, log_alpha=log_alpha, temperature=temperature, low=low, high=high
        )

    def rsample(self, sample_shape: _size = Size()) -> Tensor:
        """Draw with gradients; shape ``sample_shape + batch_shape``."""
        shape = self._extended_shape(sample_shape)
        return self.icdf(torch.rand_like(self.log_alpha.expand(shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """With respect to Lebesgue measure plus a unit mass at 0 and at 1."""
        if self._validate_args:
            self._validate_sample(value)
        logit = self._logit(value)  # finite at the atoms as well
        below = self.temperature * logit - self.log_alpha  # logit of P(z <= value)
        slope = self.temperature * ((value - self.low).reciprocal() + 1 / (self.high - value))
        density = logsigmoid(below) + logsigmoid(-below) + slope.log()
        inside = torch.where(value >= 1, logsigmoid(-below), density)
        return torch.where(value <= 0, logsigmoid(below), inside)

    def cdf(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        below = torch.sigmoid(self.temperature * self._logit(value) - self.log_alpha)
        return torch.where(value >= 1, torch.ones_like(below), below)

    def icdf(self, value: Tensor) -> Tensor:
        """The least z with cdf at least `value`."""
        stretched = ((clamp_probs(value).logit() + self.log_alpha) / self.temperature).sigmoid()
        return (self.low + (self.high - self.low) * stretched).clamp(0, 1)

    @property
    def probability_nonzero(self) -> Tensor:
        """P(z > 0), with gradients."""
        return torch.sigmoid(self.log_alpha - self.temperature * (-self.low / self.high).log())

    @property
    def mean(self) -> Tensor:
        above, first, _ = self._moments()
        return torch.where(above, 1 - first, first).to(self.log_alpha.dtype)

    @property
    def variance(self) -> Tensor:
        _, first, second = self._moments()
        return (second - first**2).to(self.log_alpha.dtype)

    def _logit(self, value: Tensor) -> Tensor:
        """Logit of the concrete variable that is stretched to `value`."""
        return ((value - self.low) / (self.high - value)).log()

    def _moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """First two moments of z, or of 1 - z where the first result holds.

        Taken of the smaller of the two, so that the variance does not cancel.
        """
        low, high = self.low.double(), self.high.double()
        log_alpha, temperature = self.log_alpha.double(), self.temperature.double()
        logit, weight = gauss_legendre((-low / high).log(), ((1 - low) / (high - 1)).log(), _NODES)
        low, width = low.unsqueeze(-1), (high - low).unsqueeze(-1)
        value = low + width * logit.sigmoid()
        weight = weight * width * logit.sigmoid() * (-logit).sigmoid()  # that is, d value
        above = log_alpha > 0
        sign = torch.where(above, -1.0, 1.0).unsqueeze(-1)
        distance = torch.where(above.unsqueeze(-1), 1 - value, value)
        beyond = (sign * (log_alpha.unsqueeze(-1) - temperature.unsqueeze(-1) * logit)).sigmoid()
        return above, (weight * beyond).sum(-1), (2 * weight * distance * beyond).sum(-1)
