"""Fisher information of a unit's gate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from bayesprune.criteria._criterion import Criterion
from bayesprune.criteria._units import GateDerivatives, batches
from bayesprune.groups import ChannelGroups
from bayesprune.losses import Loss
from bayesprune.selection import ChannelScores


class Fisher(Criterion):
    r"""Half the mean squared derivative of an example's loss by the unit's gate, at gate 1.

    :math:`\frac12 \frac1N \sum_n (\partial L_n / \partial z)^2`, the second-order estimate of what
    removing the unit costs; the derivative by the gate is the sum of activation times gradient.

    Parameters
    ----------
    loss : callable, optional
        ``(output, targets)`` of a batch to one loss per example, shape ``(N,)``: a mean over the
        batch would shrink each derivative. Cross-entropy by default.

    References
    ----------
    Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018.
    """

    reference = "Theis et al., 2018"

    def __init__(self, loss: Loss | None = None) -> None:
        self.loss = loss

    def scores(
        self, network: nn.Module, groups: ChannelGroups, loader: Iterable[Any]
    ) -> ChannelScores:
        derivatives = GateDerivatives(network, groups, self.loss)
        device, seen = derivatives.device, 0
        total = {name: torch.zeros(size, device=device) for name, size in groups.sizes.items()}
        for inputs, targets in batches(loader, device, "Fisher"):
            for name, found in derivatives(inputs, targets, len(targets)).items():
                total[name] += found.square().sum(0)
            seen += len(targets)
        return ChannelScores({n: (t / (2 * seen)).cpu() for n, t in total.items()}, "Fisher")
