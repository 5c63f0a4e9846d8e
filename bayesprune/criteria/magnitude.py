"""The norm of a unit's filters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import nn

from bayesprune.criteria._criterion import Criterion
from bayesprune.criteria._units import parameters, unit_weights
from bayesprune.errors import ConfigError
from bayesprune.groups import ChannelGroups
from bayesprune.selection import ChannelScores


class Magnitude(Criterion):
    """The norm of the weights that produce the unit, over all producing layers.

    Parameters
    ----------
    order : {1, 2}
        The sum of absolute weights, or the Euclidean norm.

    Raises
    ------
    ConfigError
        If `order` is something else.

    References
    ----------
    Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017 (order 1).

    Examples
    --------
    >>> import torch
    >>> import bayesprune as bp
    >>> network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    >>> network[0].weight.data = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    >>> groups = bp.trace_groups(network, torch.zeros(1, 2))
    >>> bp.criteria.Magnitude().scores(network, groups, loader=[]).values["0"]
    tensor([5., 1.])
    """

    reference = "Li et al., ICLR 2017"

    def __init__(self, order: Literal[1, 2] = 2) -> None:
        if order not in (1, 2):
            raise ConfigError(f"Magnitude.order: expected 1 or 2, got {order!r}")
        self.order = order

    def scores(
        self, network: nn.Module, groups: ChannelGroups, loader: Iterable[Any]
    ) -> ChannelScores:
        tensors = parameters(network, groups)
        values = {
            name: unit_weights(group, tensors).norm(self.order, 1) for name, group in groups.items()
        }
        return ChannelScores(values, f"l{self.order} norm")
