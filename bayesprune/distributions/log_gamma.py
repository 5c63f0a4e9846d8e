"""The logarithm of a gamma variate."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions.utils import broadcast_all
from torch.types import _size


class LogGamma(TorchDistribution):
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

    def __init__(self, concentration: Tensor | float, validate_args: bool | None = None) -> None:
        (self.concentration,) = broadcast_all(concentration)
        super().__init__(self.concentration.shape, validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: Any = None) -> LogGamma:
        new: Any = self._get_checked_instance(LogGamma, _instance)
        new.concentration = self.concentration.expand(batch_shape)
        super(LogGamma, new).__init__(new.concentration.shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

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
