"""What the distributions of one number share: parameters, expansion, quadrature, slopes."""

from __future__ import annotations

from functools import cache
from typing import Any, Self

import numpy as np
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions.utils import broadcast_all
from torch.types import _size


class Univariate(TorchDistribution):
    """Abstract: a distribution of one number, whose parameters broadcast to the batch shape.

    Parameters
    ----------
    **parameters : Tensor or float
        One per key of `arg_constraints`.
    """

    def __init__(self, validate_args: bool | None = None, **parameters: Tensor | float) -> None:
        values = broadcast_all(*parameters.values())
        for name, value in zip(parameters, values, strict=True):
            setattr(self, name, value)
        super().__init__(values[0].shape, validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: Any = None) -> Self:
        new: Any = self._get_checked_instance(type(self), _instance)
        values = {name: getattr(self, name).expand(batch_shape) for name in self.arg_constraints}
        Univariate.__init__(new, validate_args=False, **values)
        new._validate_args = self._validate_args
        return new


_rule = cache(np.polynomial.legendre.leggauss)  # takes longer to make than to use


def gauss_legendre(low: Tensor, high: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on ``[low, high]``, along a new last dimension, in double precision."""
    nodes, weights = (torch.as_tensor(array, device=low.device) for array in _rule(num_nodes))
    half = ((high - low) / 2).unsqueeze(-1)
    return low.unsqueeze(-1) + half * (1 + nodes), half * weights


def with_slopes(value: Tensor, *slopes: tuple[Tensor, Tensor]) -> Tensor:
    """`value`, given derivatives: pairs of an argument and the derivative with respect to it."""
    value = value.detach()
    for argument, slope in slopes:
        value = value + slope.detach() * (argument - argument.detach())
    return value
