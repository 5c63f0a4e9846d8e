"""What a network costs: multiply-accumulates and parameters by counting, latency by measuring."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bayesprune._modes import evaluating, without_fused_attention
from bayesprune.groups import ChannelGroups


@dataclass(frozen=True)
class Cost:
    """The size of a network.

    Parameters
    ----------
    macs : int
        Multiply-accumulates for one input: convolutions, matrix products and attention, without
        biases, normalizations and element-wise operations. One multiply-accumulate is two FLOPs.
    params : int
        All parameters, shared ones counted once.
    weights : int
        Parameters with at least two dimensions: no biases and no normalizations.
    """

    macs: int
    params: int
    weights: int

    def __str__(self) -> str:
        return f"{self.macs:,} MACs, {self.params:,} parameters, {self.weights:,} weights"

    def _repr_html_(self) -> str:
        return (
            "<table><tr><th>MACs</th><th>parameters</th><th>weights</th></tr>"
            f"<tr><td>{self.macs:,}</td><td>{self.params:,}</td><td>{self.weights:,}</td></tr>"
            "</table>"
        )


def cost(network: nn.Module, example_input: Tensor | tuple[Tensor, ...]) -> Cost:
    """Count what one input costs and how many parameters the network holds.

    The network runs once in evaluation mode without gradients, and is left as it was.

    Parameters
    ----------
    network : nn.Module
        Any network that accepts the input; it may lie on the meta device.
    example_input : Tensor or tuple of Tensor
        One argument, or all positional arguments, of the forward pass. The first dimension of the
        first tensor is the batch, of any size >= 1.

    Returns
    -------
    Cost
        Multiply-accumulates for one input, parameters and weights.

    Notes
    -----
    Counts what `torch.utils.flop_counter` has a formula for. Recurrent layers (`nn.LSTM`,
    `nn.GRU`) have none and count as zero.
    """
    inputs = _as_tuple(example_input)
    counter = FlopCounterMode(display=False)
    with evaluating(network), without_fused_attention(), counter:
        network(*inputs)
    parameters = list(network.parameters())
    return Cost(
        macs=round(counter.get_total_flops() / 2 / inputs[0].shape[0]),
        params=sum(p.numel() for p in parameters),
        weights=sum(p.numel() for p in parameters if p.dim() >= 2),
    )


def latency(
    network: nn.Module,
    example_input: Tensor | tuple[Tensor, ...],
    *,
    repeats: int = 30,
    warmup: int = 5,
) -> float:
    """Measure how long the network takes for one call on this machine.

    Parameters
    ----------
    network : nn.Module
        The network; measured in evaluation mode under inference mode, and left as it was.
    example_input : Tensor or tuple of Tensor
        One argument, or all positional arguments, of the forward pass, on the network's device.
    repeats : int
        Timed calls, >= 1.
    warmup : int
        Calls before the first timed one, >= 0.

    Returns
    -------
    float
        Median time of a call in milliseconds, for the whole batch of `example_input`.
    """
    inputs = _as_tuple(example_input)
    device = inputs[0].device

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    seconds = []
    with evaluating(network), torch.inference_mode():
        for _ in range(warmup):
            network(*inputs)
        for _ in range(repeats):
            wait()
            start = time.perf_counter()
            network(*inputs)
            wait()
            seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


def _as_tuple(example_input: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (example_input,) if isinstance(example_input, Tensor) else example_input


class CostModel:
    """The cost of a network from the units that its groups keep, without building it.

    Parameters
    ----------
    groups : ChannelGroups
    """

    def __init__(self, groups: ChannelGroups) -> None:
        self._groups = groups
        # For each cut axis of a tensor: how many of its entries each unit of a group owns.
        self._owned: dict[tuple[str, int], list[tuple[str, np.ndarray]]] = {}
        for name, group in groups.items():
            for slice_ in group.slices:
                counts = np.bincount(slice_.units.numpy() + 1, minlength=group.size + 1)[1:]
                self._owned.setdefault((slice_.tensor, slice_.axis), []).append((name, counts))

    def __call__(self, kept: Mapping[str, Iterable[int]]) -> Cost:
        """Cost when the groups in `kept` keep these units and all others are whole."""
        gone = {}
        for name, units in kept.items():
            gone[name] = np.ones(self._groups[name].size, dtype=bool)
            gone[name][np.fromiter(units, dtype=int)] = False

        def size(tensor: str) -> int:
            lengths = list(self._groups.shapes[tensor])
            for axis in range(len(lengths)):
                for name, counts in self._owned.get((tensor, axis), ()):
                    if name in gone:
                        lengths[axis] -= int(counts[gone[name]].sum())
            return math.prod(lengths)

        sizes = {tensor: size(tensor) for tensor in self._groups.parameters}
        return Cost(
            macs=self._groups.fixed_macs
            + sum(
                int((np.array(units) * ~gone.get(name, np.zeros(len(units), bool))).sum())
                for name, units in self._groups.unit_macs.items()
            )
            + sum(use.positions * sizes[use.tensor] for use in self._groups.uses),
            params=sum(sizes.values()),
            weights=sum(n for t, n in sizes.items() if len(self._groups.shapes[t]) >= 2),
        )

    def curves(
        self, kind: Literal["macs", "params"], order: Mapping[str, Sequence[int]]
    ) -> CostCurves:
        """The cost while groups lose units in a given order, a permutation of each group's units.

        Much faster than one call per number of units.
        """
        return CostCurves(self._groups, self._owned, kind, order)


class CostCurves:
    """What it saves to remove more units of a group or fewer; made by `CostModel.curves`.

    Attributes
    ----------
    removed : dict of str to int
        How many units each group has lost now; changed by `set`.
    """

    def __init__(
        self,
        groups: ChannelGroups,
        owned: Mapping[tuple[str, int], list[tuple[str, np.ndarray]]],
        kind: Literal["macs", "params"],
        order: Mapping[str, Sequence[int]],
    ) -> None:
        self.removed = dict.fromkeys(order, 0)
        self._price = dict.fromkeys(groups.parameters, 1)
        if kind == "macs":
            self._price = {use.tensor: use.positions for use in groups.uses}
        self._lengths = {tensor: list(groups.shapes[tensor]) for tensor in self._price}
        # Multiply-accumulates outside layers that are gone after 0, 1, … removals.
        self._outside = {
            name: np.concatenate([[0], np.array(units)[np.asarray(order[name])].cumsum()])
            for name, units in groups.unit_macs.items()
            if kind == "macs" and name in order
        }
        # For each cut axis of a tensor: how many entries are gone after 0, 1, … removals.
        self._cuts: dict[str, dict[str, dict[int, np.ndarray]]] = {name: {} for name in order}
        for (tensor, axis), owners in owned.items():
            for name, counts in owners:
                if tensor in self._price and name in order:
                    gone = np.concatenate([[0], counts[np.asarray(order[name])].cumsum()])
                    self._cuts[name].setdefault(tensor, {})[axis] = gone

    def __call__(self, name: str) -> np.ndarray:
        """Cost with 0, 1, …, C units removed from a group, minus the cost now.

        Returns
        -------
        ndarray
            Shape ``(C + 1,)``, non-increasing, 0 at ``removed[name]``.
        """
        now = self.removed[name]
        total = -self._outside.get(name, np.zeros(1))
        for tensor, cuts in self._cuts[name].items():
            size: np.ndarray | int = self._price[tensor]
            for axis, length in enumerate(self._lengths[tensor]):
                size = size * (length + cuts[axis][now] - cuts[axis] if axis in cuts else length)
            total = total + size
        return total - total[now]

    def set(self, name: str, count: int) -> None:
        """Remove `count` units of a group, not more and not fewer."""
        for tensor, cuts in self._cuts[name].items():
            for axis, gone in cuts.items():
                self._lengths[tensor][axis] -= int(gone[count] - gone[self.removed[name]])
        self.removed[name] = count
