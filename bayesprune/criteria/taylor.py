"""First-order estimates of what removing a unit costs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from bayesprune._checks import check_integer
from bayesprune.criteria._criterion import Criterion
from bayesprune.criteria._units import GateDerivatives, batches, minibatches
from bayesprune.groups import ChannelGroups
from bayesprune.losses import Loss
from bayesprune.selection import ChannelScores


class Taylor2016(Criterion):
    r"""The mean absolute derivative of an example's loss by the unit's gate, scaled per group.

    :math:`\frac1N \sum_n |\partial L_n / \partial z|`, the first-order estimate of how much
    removing the unit changes the loss, where the derivative by the gate is the sum of activation
    times gradient over the feature map. (The mean over the map, as in print, differs by a factor
    that the scaling takes away.) Each group's scores are divided by their Euclidean norm.
    LayerPrune calls this criterion "feature maps".

    Parameters
    ----------
    loss : callable, optional
        ``(output, targets)`` of a batch to one loss per example, shape ``(N,)``. Cross-entropy by
        default.

    References
    ----------
    Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference",
    ICLR 2017, equations 7 and 8.
    """

    reference = "Molchanov et al., ICLR 2017"

    def __init__(self, loss: Loss | None = None) -> None:
        self.loss = loss

    def scores(
        self, network: nn.Module, groups: ChannelGroups, loader: Iterable[Any]
    ) -> ChannelScores:
        derivatives = GateDerivatives(network, groups, self.loss)
        device = derivatives.device
        total = {name: torch.zeros(size, device=device) for name, size in groups.sizes.items()}
        for inputs, targets in batches(loader, device, "Taylor2016"):
            for name, found in derivatives(inputs, targets, len(targets)).items():
                total[name] += found.abs().sum(0)
        values = {name: nn.functional.normalize(t, dim=0).cpu() for name, t in total.items()}
        return ChannelScores(values, "Taylor 2016")


class Taylor2019(Criterion):
    r"""The squared derivative of a minibatch's mean loss by the unit's gate, averaged.

    :math:`(\partial L / \partial z)^2 = (\sum_w w\, \partial L / \partial w)^2` over all weights
    that read the unit: the squared first-order change of the loss. Unlike `Fisher`, gradients of
    the examples of a minibatch cancel before they are squared.

    Parameters
    ----------
    minibatch : int
        Examples whose losses are averaged, >= 1, however the loader batches them. A last
        incomplete minibatch counts by its share.
    loss : callable, optional
        ``(output, targets)`` of a batch to one loss per example, shape ``(N,)``. Cross-entropy by
        default.

    Raises
    ------
    ConfigError
        If `minibatch` is below 1.

    References
    ----------
    Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, equation 8
    with a gate per unit. Its momentum over pruning steps is that of `Iterative`.
    """

    reference = "Molchanov et al., CVPR 2019"

    def __init__(self, minibatch: int = 64, loss: Loss | None = None) -> None:
        check_integer("Taylor2019.minibatch", minibatch)
        self.minibatch = minibatch
        self.loss = loss

    def scores(
        self, network: nn.Module, groups: ChannelGroups, loader: Iterable[Any]
    ) -> ChannelScores:
        derivatives = GateDerivatives(network, groups, self.loss)
        device = derivatives.device
        total = {name: torch.zeros(size, device=device) for name, size in groups.sizes.items()}
        seen = 0
        loaded = batches(loader, device, "Taylor2019")
        for inputs, targets in minibatches(loaded, self.minibatch):
            for name, found in derivatives(inputs, targets).items():
                total[name] += (found / len(targets)).square() * len(targets)
            seen += len(targets)
        return ChannelScores({n: (t / seen).cpu() for n, t in total.items()}, "Taylor 2019")
