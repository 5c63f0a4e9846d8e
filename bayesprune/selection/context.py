"""What a rule may look at besides the scores."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bayesprune.batches import checked_batch, on_device, split
from bayesprune.cost import CostModel
from bayesprune.errors import DataError, PlanError
from bayesprune.gating import GatedNetwork
from bayesprune.groups import ChannelGroups
from bayesprune.losses import Loss, batch_loss
from bayesprune.plan import Kept, Limits, PruningPlan
from bayesprune.timing import LatencyModel

_PART = 128
"""Examples at once on a CPU, which does not gain by more."""


class HeldOut:
    """Loss of the masked network on held-out examples, which stay in memory."""

    def __init__(
        self,
        network: nn.Module,
        groups: ChannelGroups,
        loader: Iterable[Any],
        examples: int,
        loss: Loss | None,
    ) -> None:
        self.loss = loss
        self.sizes = groups.sizes
        self.network = GatedNetwork(network, groups).eval()
        self.device = next(network.parameters()).device
        self.batches, seen = [], 0
        for index, batch in enumerate(loader):
            batch = on_device(checked_batch(batch, index), self.device)
            self.batches += split(batch, _PART) if self.device.type == "cpu" else [batch]
            seen += len(batch[1])
            if seen >= examples:
                break
        if not seen:
            raise DataError("select: the held-out loader is empty")
        self.seen = seen

    def __call__(self, kept: Kept, gates: Mapping[str, Tensor] | None = None) -> float:
        """Mean loss per example with the units `kept`, at `gates` of shape ``(C,)`` or at 1."""
        masks = PruningPlan(kept, {name: self.sizes[name] for name in kept}).masks()
        masks = {name: mask.to(self.device) for name, mask in masks.items()}
        for name, gate in (gates or {}).items():
            masks[name] = masks.get(name, 1.0) * gate.to(self.device)
        total = 0.0
        with torch.inference_mode():
            for inputs, targets in self.batches:
                output = self.network(inputs, masks)
                total += batch_loss(self.loss, output, targets).item() * len(targets)
        if not math.isfinite(total):
            raise DataError("select: the loss on the held-out data is not finite")
        return total / self.seen


class Context:
    """What a rule may look at besides the scores; what is slow is found out on first use.

    Parameters
    ----------
    groups : ChannelGroups
    limits : Limits, optional
        How many units each group may keep; any number by default.
    network : nn.Module, optional
        The network that the units are cut from.
    example_input : Tensor or tuple, optional
        What latency is measured on.
    loader : iterable, optional
        Held-out batches ``(inputs, targets)``.
    examples : int
        How many held-out examples to measure the loss on.
    loss_function : callable, optional
        ``(output, targets)`` to the mean loss of a batch; cross-entropy by default.
    measure : callable, optional
        ``(network, example_input)`` to milliseconds, for `LatencyModel`.
    progress : bool
        Whether to show how far a selection by held-out loss has come.
    """

    def __init__(
        self,
        groups: ChannelGroups,
        limits: Limits | None = None,
        *,
        network: nn.Module | None = None,
        example_input: Tensor | tuple[Any, ...] | None = None,
        loader: Iterable[Any] | None = None,
        examples: int = 2048,
        loss_function: Loss | None = None,
        measure: Callable[[nn.Module, Any], float] | None = None,
        progress: bool = True,
    ) -> None:
        self.groups = groups
        self.limits = limits or Limits()
        self.network = network
        self.example_input = example_input
        self.loader = loader
        self.examples = examples
        self.loss_function = loss_function
        self.measure = measure
        self.progress = progress

    def changed(self, **changes: Any) -> Context:
        """A copy with other limits, weights or data; what latency was measured stays."""
        other = copy.copy(self)
        other.__dict__.pop("loss", None)
        for name, value in changes.items():
            setattr(other, name, value)
        return other

    def widths(self, name: str) -> np.ndarray:
        """The numbers of units that a group may keep, ascending."""
        return self.limits.widths(name, self.groups[name].size)

    def fit(self, name: str, count: float) -> int:
        """The smallest of these numbers that is at least `count`, or the whole group."""
        return self.limits.fit(name, self.groups[name].size, count)

    @cached_property
    def prices(self) -> CostModel:
        """MACs, parameters and weights by what is kept."""
        return CostModel(self.groups)

    @cached_property
    def latency(self) -> LatencyModel:
        """Milliseconds by what is kept; raises PlanError without network or example."""
        if self.network is None or self.example_input is None:
            raise PlanError("Budget: latency_ms is measured; expected network and example_input")
        return LatencyModel(
            self.network, self.groups, self.example_input, self.limits, self.measure
        )

    @cached_property
    def loss(self) -> HeldOut | None:
        """Held-out loss of the network with these units alone, if there is data for it."""
        if self.network is None or self.loader is None:
            return None
        return HeldOut(self.network, self.groups, self.loader, self.examples, self.loss_function)
