"""The scale that a normalisation gives a unit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from bayesprune.criteria._criterion import Criterion
from bayesprune.criteria._units import parameters
from bayesprune.errors import PlanError
from bayesprune.groups import ChannelGroups
from bayesprune.selection import ChannelScores

_Norm = nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm


class BatchNormScale(Criterion):
    r"""The absolute scale :math:`|\gamma|` of the unit's normalisation, the mean if it has several.

    Groups without a normalisation are not scored, so that they stay whole. As published the
    network is trained with an l1 penalty on the scales first.

    Raises
    ------
    PlanError
        On use, if no group passes a normalisation with scales.

    References
    ----------
    Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017.
    """

    reference = "Liu et al., ICCV 2017"

    def scores(
        self, network: nn.Module, groups: ChannelGroups, loader: Iterable[Any]
    ) -> ChannelScores:
        tensors = parameters(network, groups)
        values = {}
        for name, group in groups.items():
            total, count = torch.zeros(group.size), torch.zeros(group.size)
            for slice_ in group.slices:
                norm = isinstance(network.get_submodule(slice_.module), _Norm)
                if norm and slice_.tensor.endswith("weight"):
                    owned = slice_.units >= 0
                    scale = tensors[slice_.tensor].movedim(slice_.axis, 0).abs()
                    scale = scale.reshape(len(owned), -1).mean(1)[owned]
                    total.index_add_(0, slice_.units[owned], scale)
                    count.index_add_(0, slice_.units[owned], torch.ones_like(scale))
            if count.any():
                values[name] = total / count.clamp_min(1)
        if not values:
            raise PlanError(
                "BatchNormScale: expected normalisations with scales, found none in the groups "
                f"{', '.join(groups)}"
            )
        return ChannelScores(values, "batch-norm scale")
