"""Fisher information of a unit's gate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from bayesprune.criteria._criterion import Criterion
from bayesprune.errors import DataError
from bayesprune.gating import GatedNetwork
from bayesprune.groups import ChannelGroups
from bayesprune.losses import Loss, example_losses
from bayesprune.selection import ChannelScores
from bayesprune.training import checked_batch, on_device


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
        gated = GatedNetwork(network, groups).eval().requires_grad_(False)
        device = next(network.parameters()).device
        total = {name: torch.zeros(size, device=device) for name, size in groups.sizes.items()}
        seen = 0
        for index, batch in enumerate(loader):
            inputs, targets = on_device(checked_batch(batch, index), device)
            gates = {
                name: torch.ones(len(targets), size, device=device, requires_grad=True)
                for name, size in groups.sizes.items()
            }
            with torch.enable_grad():
                output = gated(inputs, gates)
                loss = example_losses(self.loss, output, targets).sum()
            for name, grad in zip(
                gates, torch.autograd.grad(loss, list(gates.values())), strict=True
            ):
                total[name] += grad.square().sum(0)
            seen += len(targets)
        if not seen:
            raise DataError("Fisher: the loader is empty")
        return ChannelScores({n: (t / (2 * seen)).cpu() for n, t in total.items()}, "Fisher")
