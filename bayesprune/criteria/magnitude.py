"""The norm of a unit's filters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from bayesprune.criteria._criterion import Criterion
from bayesprune.groups import ChannelGroups
from bayesprune.selection import ChannelScores


class Magnitude(Criterion):
    """The Euclidean norm of the weights that produce the unit, over all producing layers.

    References
    ----------
    Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017 (there with the l1 norm).
    """

    reference = "Li et al., ICLR 2017"

    def scores(
        self, network: nn.Module, groups: ChannelGroups, loader: Iterable[Any]
    ) -> ChannelScores:
        tensors = dict(network.named_parameters())
        values = {}
        for name, group in groups.items():
            squares = torch.zeros(group.size)
            for slice_ in group.slices:
                if slice_.role == "producer":
                    weight = tensors[slice_.tensor].detach().cpu().float().movedim(slice_.axis, 0)
                    owned = slice_.units >= 0
                    norms = weight.reshape(len(weight), -1).square().sum(1)
                    squares.index_add_(0, slice_.units[owned], norms[owned])
            values[name] = squares.sqrt()
        return ChannelScores(values, "magnitude")
