"""The logarithm of a gamma variate."""

from __future__ import annotations

import torch
from pyro.distributions import constraints
from torch import Size, Tensor
from torch.types import _size

from bayesprune.distributions._univariate import Univariate


class LogGamma(Univariate):
    r"""Distribution of :math:`u = \log g` for :math:`g \sim \mathrm{Gamma}(\alpha, 1)`.

    If the :math:`u_i` are independent, ``softmax(u)`` is Dirichlet with the same concentrations.
    Working with the logarithm keeps small concentrations, whose variates underflow, in range.

    Parameters
    ----------
    concentration : Tensor or float
        Shape of the gamma variate, positive; sets the batch shape.
    """

    arg_constraints = {"concentration": constraints.positive}  # type: ignore[assignment]
    support = constraints.real  # type: ignore[assignment]
    has_rsample = True

    concentration: Tensor

    def __init__(self, concentration: Tensor | float, validate_args: bool | None = None) -> None:
        super().__init__(validate_args, concentration=concentration)

    def rsample(self, sample_shape: _size = Size()) -> Tensor:
        """Draw with gradients; shape ``sample_shape + batch_shape``."""
        # Gamma(a) = Gamma(a + 1) U^(1/a): the first factor stays away from zero, and -log U is
        # exponential.
        concentration = self.concentration.expand(self._extended_shape(sample_shape))
        boosted = torch._standard_gamma(concentration + 1)  # type: ignore[attr-defined]
        return boosted.log() - torch.empty_like(concentration).exponential_() / concentration

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.concentration * value - value.exp() - torch.lgamma(self.concentration)

    @property
    def mean(self) -> Tensor:
        return torch.digamma(self.concentration)

    @property
    def variance(self) -> Tensor:
        return torch.polygamma(1, self.concentration)
