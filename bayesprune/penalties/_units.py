"""The units of a network as vectors of weights, which penalties shrink."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bayesprune.groups import ChannelGroup, ChannelGroups, Slice
from bayesprune.penalties._prox import safe_root

Scale = Literal["size", "macs", "none"]
"""What a unit's penalty is multiplied by, so that groups of different kinds compare: the square
root of its number of weights, its multiply-accumulates relative to their mean over all units, or 1.
"""

Extent = Literal["joint", "filter"]
"""Whether a unit's vector holds what reads the unit besides what produces it.

Selected inputs, which no weight produces, always have the vector of what reads them.
"""

_Norm = nn.modules.batchnorm._NormBase
_Convolution = nn.modules.conv._ConvNd


@dataclass(frozen=True)
class _Part:
    """The rows of one weight that belong to the units of a group.

    The vector holds them times the absolute value of `gamma`, the scale of the batch
    normalisation right behind: without it a penalty would shrink weights whose size changes
    nothing, since normalisation undoes it.
    """

    weight: nn.Parameter
    axis: int
    rows: Tensor  # which entries along the axis belong to a unit
    units: Tensor  # the unit of each of these
    place: Tensor  # the how-manieth row of its unit each is
    produces: bool
    gamma: nn.Parameter | None = None

    def read(self) -> Tensor:
        """Shape ``(rows, entries)``, without the scale."""
        return self.weight.movedim(self.axis, 0)[self.rows].flatten(1)

    def vectors(self) -> Tensor:
        rows = self.read()
        return rows if self.gamma is None else rows * self.gamma[self.rows].abs()[:, None]

    def squares(self) -> Tensor:
        others = [axis for axis in range(self.weight.ndim) if axis != self.axis]
        squares = self.weight.square().sum(others)[self.rows]
        return squares if self.gamma is None else squares * self.gamma[self.rows].square()

    def multiply_(self, factors: Tensor) -> None:
        """Multiply each row of the vector by a factor of at least 0."""
        full = factors.new_ones(self.weight.shape[self.axis]).index_copy(0, self.rows, factors)
        if self.gamma is not None:
            self.gamma.mul_(full)
        else:
            shape = [1] * self.weight.ndim
            shape[self.axis] = -1
            self.weight.mul_(full.reshape(shape))

    def write_(self, rows: Tensor) -> None:
        """Put vectors in the place of these; the scale takes their length, the weight the rest."""
        if self.gamma is not None:
            before, after = self.vectors().norm(dim=1), rows.norm(dim=1)
            weights = self.read().norm(dim=1)
            alive = (before > 0) & (after > 0)
            ratio = torch.where(alive, weights / after.where(alive, torch.ones_like(after)), 0)
            shrink = torch.where(alive, after / before.where(alive, torch.ones_like(before)), 0)
            # A vector of zeros keeps its direction: its scale alone is 0.
            rows = torch.where(alive[:, None], rows * ratio[:, None], self.read())
            self.gamma[self.rows] = self.gamma[self.rows] * shrink
        moved = self.weight.movedim(self.axis, 0)
        moved[self.rows] = rows.reshape(len(rows), *moved.shape[1:])


class UnitGroup:
    """The units of one channel group as vectors.

    A unit's vector holds the filters that produce it, in all layers that do, and the weights with
    which the next layers read it. Where a weight does both for one group (a residual branch), it
    counts as filter. Biases and the shifts of normalisations are in no vector.

    Parameters
    ----------
    network : nn.Module
        Its parameters are viewed, and changed by the methods that end in ``_``.
    group : ChannelGroup
    extent : {"joint", "filter"}

    Attributes
    ----------
    parts : tuple
    sizes : Tensor
        Shape ``(C,)``: the number of weights in each vector.
    """

    def __init__(self, network: nn.Module, group: ChannelGroup, extent: Extent) -> None:
        self.name, self.size = group.name, group.size
        parameters = dict(network.named_parameters(remove_duplicate=False))
        parts: dict[str, _Part] = {}
        self._owned: list[tuple[nn.Parameter, int, Tensor, Tensor]] = []
        newest = None
        made = any(s.role != "consumer" and s.tensor in parameters for s in group.slices)
        joint = extent == "joint" or not made
        for slice_ in group.slices:
            weight = parameters.get(slice_.tensor)
            if weight is None:  # running statistics
                continue
            owner = network.get_submodule(slice_.module)
            rows = (slice_.units >= 0).nonzero()[:, 0].to(weight.device)
            units = slice_.units.to(weight.device)[rows]
            self._owned.append((weight, slice_.axis, rows, units))
            if _is_part(slice_, weight, owner):
                produces = slice_.role != "consumer"
                if slice_.tensor not in parts and (produces or joint):
                    place = _counted(units)
                    part = _Part(weight, slice_.axis, rows, units, place, produces)
                    parts[slice_.tensor] = part
                    newest = slice_.tensor if produces else newest
            elif isinstance(owner, _Norm) and owner.weight is weight and newest is not None:
                part = parts[newest]
                own = len(weight) == part.weight.shape[part.axis]  # not that of a concatenation
                if own and part.gamma is None and torch.equal(part.rows, rows):
                    fields = (part.weight, part.axis, part.rows, part.units, part.place)
                    parts[newest] = _Part(*fields, part.produces, weight)
        self.parts = tuple(parts.values())
        self.sizes = self.tally(lambda part: 1)

    @torch.no_grad()
    def tally(self, price: Callable[[nn.Parameter], float]) -> Tensor:
        """The sum of a price per entry of each weight over each vector, shape ``(C,)``."""
        return self._sum(
            [torch.full_like(p.squares(), p.read().shape[1] * price(p.weight)) for p in self.parts]
        )

    def _sum(self, rows: list[Tensor]) -> Tensor:
        total = rows[0].new_zeros(self.size)
        for part, values in zip(self.parts, rows, strict=True):
            total = total.index_add(0, part.units, values)
        return total

    def squares(self) -> Tensor:
        """The squared Euclidean norm of each vector, shape ``(C,)``, differentiable."""
        return self._sum([part.squares() for part in self.parts])

    def norms(self) -> Tensor:
        """The Euclidean norm of each vector, shape ``(C,)``; its gradient at 0 is taken as 0."""
        return safe_root(self.squares())

    def matrix(self) -> Tensor:
        """The vectors side by side, shape ``(C, K)``, differentiable.

        Short vectors are filled with zeros; the entries of what produces a unit come first.
        """
        blocks = []
        for part in self._ordered():
            rows = part.vectors()
            block = rows.new_zeros(self.size, int(part.place.max()) + 1, rows.shape[1])
            blocks.append(block.index_put((part.units, part.place), rows).flatten(1))
        return torch.cat(blocks, 1)

    @property
    def produced(self) -> int:
        """How many columns of the matrix belong to what produces the units."""
        return sum((int(p.place.max()) + 1) * p.read().shape[1] for p in self.parts if p.produces)

    def _ordered(self) -> list[_Part]:
        return sorted(self.parts, key=lambda part: not part.produces)

    @torch.no_grad()
    def scale_(self, factors: Tensor) -> None:
        """Multiply each vector by a factor of at least 0, shape ``(C,)``.

        Where a batch normalisation follows, its scale takes the factor in place of the filter.
        """
        for part in self.parts:
            part.multiply_(factors[part.units])

    @torch.no_grad()
    def write_(self, matrix: Tensor) -> None:
        """Put the vectors of a matrix like `matrix` in the place of these."""
        offset = 0
        for part in self._ordered():
            depth, width = int(part.place.max()) + 1, part.read().shape[1]
            block = matrix[:, offset : offset + depth * width].reshape(self.size, depth, width)
            part.write_(block[part.units, part.place])
            offset += depth * width

    @torch.no_grad()
    def bury_(self, dead: Tensor) -> None:
        """Set to zero all that belongs to units, biases and shifts included.

        What is left of them computes a constant 0 that nobody reads, so that removing a unit
        changes nothing.

        Parameters
        ----------
        dead : Tensor
            Boolean, shape ``(C,)``: the units.
        """
        for parameter, axis, rows, units in self._owned:
            parameter.movedim(axis, 0)[rows[dead[units]]] = 0


def _is_part(slice_: Slice, weight: nn.Parameter, owner: nn.Module) -> bool:
    if slice_.role == "passthrough":  # depthwise convolutions hold filters of the unit alone
        return isinstance(owner, _Convolution) and owner.weight is weight
    return weight.ndim > 1


def _counted(units: Tensor) -> Tensor:
    """How often the value of each entry came before: 0, 1, … among equals."""
    order = torch.argsort(units, stable=True)
    sorted_ = units[order]
    counts = torch.bincount(sorted_) if len(sorted_) else sorted_
    starts = counts.cumsum(0) - counts
    place = torch.empty_like(units)
    place[order] = torch.arange(len(units), device=units.device) - starts[sorted_]
    return place


class Units(Mapping[str, UnitGroup]):
    """The units of all groups of a network, with what their penalties are multiplied by.

    Parameters
    ----------
    network : nn.Module
        Viewed, not copied.
    groups : ChannelGroups
        From `trace_groups` of the same network.
    scale : {"size", "macs", "none"}
    extent : {"joint", "filter"}

    Attributes
    ----------
    multipliers : dict of str to Tensor
        Shape ``(C,)`` per group.
    """

    def __init__(
        self,
        network: nn.Module,
        groups: ChannelGroups,
        scale: Scale = "none",
        extent: Extent = "joint",
    ) -> None:
        self.network = network
        self._groups = {name: UnitGroup(network, g, extent) for name, g in groups.items()}
        self.multipliers = _multipliers(self._groups, groups, network, scale)

    def __getitem__(self, name: str) -> UnitGroup:
        return self._groups[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)

    def norms(self) -> dict[str, Tensor]:
        """The norm of each vector by group."""
        return {name: group.norms() for name, group in self.items()}

    def bury_(self, dead: Mapping[str, Tensor]) -> None:
        """See `UnitGroup.bury_`."""
        for name, group in self.items():
            group.bury_(dead[name])

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that the vectors are made of, each once."""
        parts = [part for group in self.values() for part in group.parts]
        made_of = [p for part in parts for p in (part.weight, part.gamma) if p is not None]
        return list(dict.fromkeys(made_of))


def _multipliers(
    units: Mapping[str, UnitGroup], groups: ChannelGroups, network: nn.Module, scale: Scale
) -> dict[str, Tensor]:
    if scale == "size":
        return {name: group.sizes.sqrt() for name, group in units.items()}
    if scale == "none":
        return {name: torch.ones_like(group.sizes) for name, group in units.items()}
    positions = {network.get_parameter(use.tensor): use.positions for use in groups.uses}
    macs = {}
    for name, group in units.items():
        macs[name] = group.tally(lambda weight: positions.get(weight, 0))
        if name in groups.unit_macs:
            macs[name] += torch.tensor(groups.unit_macs[name]).to(macs[name])
    mean = torch.cat(list(macs.values())).mean()
    return {name: values / mean for name, values in macs.items()}
