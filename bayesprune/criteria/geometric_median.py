"""How far a unit's filters are from those of the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from bayesprune.criteria._criterion import Criterion
from bayesprune.criteria._units import parameters, unit_weights
from bayesprune.groups import ChannelGroups
from bayesprune.selection import ChannelScores


class GeometricMedian(Criterion):
    r"""FPGM: the sum of Euclidean distances to the filters of all other units of the group.

    :math:`\sum_k \|F_i - F_k\|_2`. Filters near the geometric median can be replaced by others.

    References
    ----------
    He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks
    Acceleration", CVPR 2019.
    """

    reference = "He et al., CVPR 2019"

    def scores(
        self, network: nn.Module, groups: ChannelGroups, loader: Iterable[Any]
    ) -> ChannelScores:
        tensors = parameters(network, groups)
        values = {}
        for name, group in groups.items():
            filters = unit_weights(group, tensors)
            # Differences of products lose the small distances that matter here.
            distance = torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist")
            values[name] = distance.sum(1)
        return ChannelScores(values, "geometric median")
