"""What a network costs: multiply-accumulates and parameters by counting, latency by measuring."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bayesprune._describe import html_table
from bayesprune._modes import evaluating, without_fused_attention
from bayesprune.batches import as_arguments
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
        counts = (f"{count:,}" for count in (self.macs, self.params, self.weights))
        return html_table(["MACs", "parameters", "weights"], [list(counts)])


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

    Examples
    --------
    >>> import torch
    >>> import bayesprune as bp
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> print(bp.cost(network, torch.zeros(1, 4)))
    42 MACs, 51 parameters, 42 weights
    """
    inputs = as_arguments(example_input)
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
    inputs = as_arguments(example_input)
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


class Term(NamedTuple):
    """A price for each entry of a tensor along some of its axes."""

    tensor: str
    axes: tuple[int, ...]
    price: float


class Price:
    """A cost that is a constant plus a sum of terms: what a budget limits.

    MACs, parameters and latency differ in their terms and in nothing else that an allocation needs.

    Parameters
    ----------
    groups : ChannelGroups
    terms : sequence of Term
    constant : float
    """

    def __init__(self, groups: ChannelGroups, terms: Sequence[Term], constant: float = 0) -> None:
        self.terms = tuple(terms)
        self.constant = constant
        self._lengths = _Lengths(groups)

    def __call__(self, kept: Mapping[str, Iterable[int]]) -> float:
        """Predicted cost when the groups in `kept` keep these units and all others are whole."""
        return self.constant + sum(self.parts(kept))

    def parts(self, kept: Mapping[str, Iterable[int]]) -> list[float]:
        """What each term contributes to that."""
        lengths = self._lengths(kept)
        return [t.price * math.prod(lengths[t.tensor][a] for a in t.axes) for t in self.terms]

    def expected(self, probability: Mapping[str, Tensor]) -> Tensor:
        """Expected cost if each unit is kept with a probability, independently; differentiable.

        Exact unless one group runs along two axes of one tensor: its count is then taken as
        independent of itself, an error of the order of one unit.

        Parameters
        ----------
        probability : mapping of str to Tensor
            Shape ``(..., C)`` by group; all other groups are whole. Zeros and ones give the cost of
            a certain choice.

        Returns
        -------
        Tensor
            Shape ``(...)``.
        """
        lengths = self._lengths.expected(probability)
        total = next(iter(probability.values())).new_tensor(self.constant)
        for term in self.terms:
            product: Tensor | float = term.price
            for axis in term.axes:
                product = product * lengths[term.tensor][axis]
            total = total + product
        return total

    def actual(self, kept: Mapping[str, Sequence[int]]) -> float:
        """What the pruned network really costs; a measured cost is measured here."""
        return self(kept)

    def curves(self, order: Mapping[str, Sequence[int]]) -> CostCurves:
        """The cost while groups lose units in a given order, a permutation of each group's units.

        Much faster than one call per number of units.
        """
        return CostCurves(self.terms, self._lengths, order)


class CostModel:
    """The cost of a network from the units that its groups keep, without building it.

    Parameters
    ----------
    groups : ChannelGroups

    Attributes
    ----------
    macs, params, weights : Price
    """

    def __init__(self, groups: ChannelGroups) -> None:
        axes = {tensor: tuple(range(len(shape))) for tensor, shape in groups.shapes.items()}
        entries = [Term(tensor, axes[tensor], 1) for tensor in groups.parameters]
        products = [Term(use.tensor, axes[use.tensor], use.positions) for use in groups.uses]
        products += [Term(name, (0,), 1) for name in groups.unit_macs]
        self.macs = Price(groups, products, groups.fixed_macs)
        self.params = Price(groups, entries)
        self.weights = Price(groups, [term for term in entries if len(term.axes) >= 2])

    def __call__(self, kept: Mapping[str, Sequence[int]]) -> Cost:
        """Cost when the groups in `kept` keep these units and all others are whole."""
        prices = (self.macs, self.params, self.weights)
        return Cost(*(int(price(kept)) for price in prices))


@dataclass(frozen=True)
class _Shared:
    """An axis of a tensor with entries that units of several groups own, one within the other."""

    tensor: str
    axis: int
    units: dict[str, np.ndarray]  # by group, of each entry; -1 if the group does not own it

    def gone(self, lost: Mapping[str, np.ndarray]) -> np.ndarray:
        """Which entries leave with the units that `lost` marks in each group."""
        gone = np.zeros(len(next(iter(self.units.values()))), dtype=bool)
        for name, units in self.units.items():
            if name in lost:
                gone |= np.append(lost[name], False)[units]
        return gone


class _Lengths:
    """The lengths of tensors from the units that groups keep."""

    def __init__(self, groups: ChannelGroups) -> None:
        self.sizes = groups.sizes
        self.whole = {tensor: list(shape) for tensor, shape in groups.shapes.items()}
        # For each group: how many entries along an axis of a tensor each of its units owns.
        self.owned: dict[str, list[tuple[str, int, np.ndarray]]] = {name: [] for name in groups}
        self.shared: list[_Shared] = []
        owners: dict[tuple[str, int], dict[str, np.ndarray]] = {}
        for name, group in groups.items():
            for s in group.slices:
                owners.setdefault((s.tensor, s.axis), {})[name] = s.units.numpy()
        for (tensor, axis), units in owners.items():
            if np.any(np.sum([own >= 0 for own in units.values()], axis=0) > 1):
                self.shared.append(_Shared(tensor, axis, units))
                continue
            for name, own in units.items():
                counts = np.bincount(own + 1, minlength=self.sizes[name] + 1)[1:]
                self.owned[name].append((tensor, axis, counts))
        # What a unit multiplies outside layers counts as a tensor named like its group, of as many
        # entries as there are multiply-accumulates.
        for name, macs in groups.unit_macs.items():
            self.whole[name] = [sum(macs)]
            self.owned[name].append((name, 0, np.array(macs)))

    def __call__(self, kept: Mapping[str, Iterable[int]]) -> dict[str, list[int]]:
        lengths = {tensor: list(whole) for tensor, whole in self.whole.items()}
        lost = {}
        for name, units in kept.items():
            lost[name] = np.ones(self.sizes[name], dtype=bool)
            lost[name][np.fromiter(units, dtype=int)] = False
            for tensor, axis, counts in self.owned[name]:
                lengths[tensor][axis] -= int(counts[lost[name]].sum())
        for shared in self.shared:
            lengths[shared.tensor][shared.axis] -= int(shared.gone(lost).sum())
        return lengths

    def expected(self, probability: Mapping[str, Tensor]) -> dict[str, list[Any]]:
        """Lengths if units are kept with these probabilities."""
        lengths: dict[str, list[Any]] = {t: list(whole) for t, whole in self.whole.items()}
        for name, keep in probability.items():
            for tensor, axis, counts in self.owned[name]:
                gone = (1 - keep) @ torch.as_tensor(counts).to(keep)
                lengths[tensor][axis] = lengths[tensor][axis] - gone
        for shared in self.shared:
            stays: Tensor | None = None
            for name, units in shared.units.items():
                if name in probability:
                    keep = probability[name]
                    padded = torch.cat([keep, keep.new_ones(*keep.shape[:-1], 1)], -1)
                    own = padded[..., torch.as_tensor(units, device=keep.device)]
                    stays = own if stays is None else stays * own
            if stays is not None:
                gone = (1 - stays).sum(-1)
                lengths[shared.tensor][shared.axis] = lengths[shared.tensor][shared.axis] - gone
        return lengths


class CostCurves:
    """What it saves to remove more units of a group or fewer; made by `Price.curves`.

    Attributes
    ----------
    removed : dict of str to int
        How many units each group has lost now; changed by `set`.
    """

    def __init__(
        self, terms: Sequence[Term], lengths: _Lengths, order: Mapping[str, Sequence[int]]
    ) -> None:
        self.removed = dict.fromkeys(order, 0)
        self._sizes = {name: len(units) for name, units in order.items()}
        self._lengths = lengths({})
        self._terms: dict[str, list[Term]] = {}
        for term in terms:
            self._terms.setdefault(term.tensor, []).append(term)
        # For each cut axis of a tensor: how many entries are gone after 0, 1, … removals.
        self._cuts: dict[str, dict[str, dict[int, np.ndarray]]] = {}
        for name, units in order.items():
            cuts = self._cuts[name] = {}
            for tensor, axis, counts in lengths.owned[name]:
                if tensor in self._terms:
                    gone = np.concatenate([[0], counts[np.asarray(units)].cumsum()])
                    cuts.setdefault(tensor, {})[axis] = gone
        # After how many removals each unit is gone.
        self._turn = {name: 1 + np.argsort(units) for name, units in order.items()}
        self._shared = [shared for shared in lengths.shared if shared.tensor in self._terms]
        for shared in self._shared:
            self._cut(shared)

    def _cut(self, shared: _Shared) -> None:
        """What removals of one group take of an axis while the others have lost what they have."""
        lost = {name: turn <= self.removed[name] for name, turn in self._turn.items()}
        for name in shared.units.keys() & lost.keys():
            others = {other: units for other, units in lost.items() if other != name}
            units = shared.units[name][~shared.gone(others)]
            turns = self._turn[name][units[units >= 0]]
            gone = np.bincount(turns, minlength=self._sizes[name] + 1).cumsum()
            self._cuts[name].setdefault(shared.tensor, {})[shared.axis] = gone

    def __call__(self, name: str, counts: np.ndarray | None = None) -> np.ndarray:
        """Cost with these numbers of units removed from a group, minus the cost now.

        Parameters
        ----------
        name : str
        counts : ndarray, optional
            Ascending numbers of units; 0, 1, …, C by default.

        Returns
        -------
        ndarray
            Shape of `counts`, non-increasing, 0 at ``removed[name]``.
        """
        now = self.removed[name]
        counts = np.arange(self._sizes[name] + 1) if counts is None else counts
        total, before = np.zeros(len(counts)), 0.0
        for tensor, cuts in self._cuts[name].items():
            lengths = self._lengths[tensor]
            left = [
                length + cuts[axis][now] - cuts[axis][counts] if axis in cuts else length
                for axis, length in enumerate(lengths)
            ]
            for term in self._terms[tensor]:
                total = total + math.prod((left[axis] for axis in term.axes), start=term.price)
                before += math.prod((lengths[axis] for axis in term.axes), start=term.price)
        return total - before

    def set(self, name: str, count: int) -> None:
        """Remove `count` units of a group, not more and not fewer."""
        for tensor, cuts in self._cuts[name].items():
            for axis, gone in cuts.items():
                self._lengths[tensor][axis] -= int(gone[count] - gone[self.removed[name]])
        self.removed[name] = count
        for shared in self._shared:
            if name in shared.units:
                self._cut(shared)
