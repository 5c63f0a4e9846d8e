"""Connection sensitivity, summed over a unit's filters."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from bayesprune.batches import as_arguments
from bayesprune.criteria._criterion import Criterion
from bayesprune.criteria._units import batches, unit_weights
from bayesprune.groups import ChannelGroups
from bayesprune.losses import Loss, example_losses
from bayesprune.selection import ChannelScores


class SNIP(Criterion):
    r"""The sum of :math:`|w\, \partial L / \partial w|` over the weights that produce the unit.

    The gradient is that of the mean loss over the loader, in evaluation mode. All scores together
    add up to 1. The paper scores single connections, before training and on one batch; summing
    them over a unit is what makes channels of it.

    Parameters
    ----------
    loss : callable, optional
        ``(output, targets)`` of a batch to one loss per example, shape ``(N,)``. Cross-entropy by
        default.

    References
    ----------
    Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity", ICLR 2019.
    """

    reference = "Lee et al., ICLR 2019"

    def __init__(self, loss: Loss | None = None) -> None:
        self.loss = loss

    def scores(
        self, network: nn.Module, groups: ChannelGroups, loader: Iterable[Any]
    ) -> ChannelScores:
        groups.check(network)
        network = copy.deepcopy(network).eval().requires_grad_(True)
        network.zero_grad()
        device, seen = next(network.parameters()).device, 0
        for inputs, targets in batches(loader, device, "SNIP"):
            arguments = as_arguments(inputs)
            with torch.enable_grad():
                example_losses(self.loss, network(*arguments), targets).sum().backward()
            seen += len(targets)
        sensitivity = {
            name: (p.detach() * p.grad / seen).abs().cpu().float()
            for name, p in network.named_parameters(remove_duplicate=False)
            if p.grad is not None
        }
        values = {name: unit_weights(g, sensitivity).sum(1) for name, g in groups.items()}
        whole = sum(float(v.sum()) for v in values.values())
        return ChannelScores({n: v / whole if whole else v for n, v in values.items()}, "SNIP")
