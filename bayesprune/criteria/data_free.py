"""How well another unit can stand in for a unit."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bayesprune.criteria._criterion import Criterion
from bayesprune.criteria._units import parameters, unit_entries
from bayesprune.errors import PlanError
from bayesprune.groups import ChannelGroup, ChannelGroups
from bayesprune.plan import PruningPlan
from bayesprune.selection import ChannelScores


class DataFree(Criterion):
    r"""The saliency that has built up when a unit is merged into another, without any data.

    Merging unit j into i costs :math:`\overline{a_j^2}\, \|W_i - W_j\|^2`, with the mean over the
    weights that read j, and :math:`W_j` everything that makes it: filters, biases, and the scales
    and shifts of normalisations. The cheapest merge is carried out first, :math:`a_i` becoming
    :math:`a_i + a_j`, and so on until one unit is left. A unit's score is the sum of the costs up
    to its own merge, so that one of two equal units has a low score and the other has not.

    References
    ----------
    Srinivas & Babu, "Data-free Parameter Pruning for Deep Neural Networks", BMVC 2015.
    """

    reference = "Srinivas & Babu, BMVC 2015"

    def scores(
        self, network: nn.Module, groups: ChannelGroups, loader: Iterable[Any]
    ) -> ChannelScores:
        tensors = parameters(network, groups)
        values = {}
        for name, group in groups.items():
            made = _made(group, tensors)
            if made.shape[1]:
                readers = unit_entries(group, tensors, ("consumer",))
                values[name] = _merge_costs(made, readers.double())
        return ChannelScores(values, "data-free saliency")

    def merge(self, network: nn.Module, groups: ChannelGroups, plan: PruningPlan) -> nn.Module:
        """A copy in which the units that a plan keeps stand in for those that it removes.

        What reads a unit that will go is added to what reads the kept unit that is made most alike.
        Give the copy to `remove_channels`.

        Raises
        ------
        PlanError
            If the groups do not fit the network or the plan does not fit the groups, or layers read
            more of one unit than of another, or selected features of it.
        """
        plan.check(groups)
        merged, tensors = copy.deepcopy(network), parameters(network, groups)
        for name, kept in plan.kept.items():
            group = groups[name]
            gone = sorted(set(range(group.size)) - set(kept))
            made = _made(group, tensors)
            if not made.shape[1]:
                continue
            heirs = _distances(made[gone], made[kept]).argmin(1) if gone else []
            for slice_ in group.slices:
                if slice_.role != "consumer":
                    continue
                if name in groups.nested:
                    raise PlanError(
                        f"{slice_.module}: reads selected features of {name}, maybe at other "
                        "positions of each unit; they cannot stand in for each other"
                    )
                columns = [(slice_.units == unit).nonzero()[:, 0] for unit in range(group.size)]
                if len({len(own) for own in columns}) > 1:
                    raise PlanError(
                        f"{slice_.module}: reads more entries of some units of {name} than of "
                        "others; they cannot stand in for each other"
                    )
                weight = merged.get_parameter(slice_.tensor).detach().movedim(slice_.axis, 0)
                for unit, heir in zip(gone, heirs, strict=True):
                    weight[columns[kept[int(heir)]]] += weight[columns[unit]]
        return merged


def _made(group: ChannelGroup, tensors: dict[str, Tensor]) -> Tensor:
    """All that makes each unit, one row per unit, in double precision."""
    return unit_entries(group, tensors, ("producer", "passthrough")).double()


def _distances(some: Tensor, others: Tensor) -> Tensor:
    """Squared Euclidean distances; differences of products would lose the small ones."""
    return torch.cdist(some, others, compute_mode="donot_use_mm_for_euclid_dist").square()


def _merge_costs(made: Tensor, readers: Tensor) -> Tensor:
    """What it has cost to merge each unit, when the cheapest merge always comes first."""
    distances = _distances(made, made).fill_diagonal_(torch.inf)
    nearest, heirs = distances.min(1)
    readers, left = readers.clone(), torch.ones(len(made), dtype=torch.bool)
    weight = readers.square().mean(1)
    costs, total = torch.zeros_like(weight), 0.0
    for _ in range(len(made) - 1):
        saliency = torch.where(left, weight * nearest, torch.inf)
        unit = int(saliency.argmin())
        total += float(saliency[unit])
        costs[unit] = total
        heir = heirs[unit]
        readers[heir] += readers[unit]
        weight[heir] = readers[heir].square().mean()
        left[unit] = False
        distances[:, unit] = torch.inf
        orphans = left & (heirs == unit)
        nearest[orphans], heirs[orphans] = distances[orphans].min(1)
    # Nothing is left to stand in for the last one: its distance is that to nothing.
    costs[left] = total + readers[left].square().mean() * made[left].square().sum()
    return costs
