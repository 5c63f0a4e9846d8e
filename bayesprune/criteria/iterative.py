"""The order in which units leave when the rest are scored again after each step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bayesprune._checks import check_choice, check_integer, check_number
from bayesprune.batches import Batch, of_each
from bayesprune.criteria._criterion import Criterion
from bayesprune.criteria._units import batches
from bayesprune.criteria.taylor import Taylor2019
from bayesprune.gating import GatedNetwork
from bayesprune.groups import ChannelGroups
from bayesprune.selection import ChannelScores, Normalisation


class Iterative(Criterion):
    """Another criterion, asked again after every few units that it has taken out.

    At each step the criterion scores the network with the gates of all units that have left at 0,
    on the next examples of the loader. Scores are averaged over steps with momentum; the lowest
    units of all groups leave, except the last of a group. A unit's score is its place in the order
    of leaving, 0 for the first; it is comparable between groups. Nothing is trained between the
    steps: for that, see the rounds of a run.

    Parameters
    ----------
    criterion : Criterion, optional
        `Taylor2019` by default.
    units : int
        How many units leave at a step, >= 1.
    examples : int
        How many examples the criterion sees at a step, >= 1; the loader starts over when it ends.
    momentum : float
        Weight of the past in the average, in [0, 1).
    normalise : {"l2", "none"}
        Whether the scores of each group are divided by their Euclidean norm before groups are
        compared.

    Raises
    ------
    ConfigError
        If a value is out of range.

    References
    ----------
    Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019 (momentum 0.9;
    100 filters every 30 minibatches, while the network is fine-tuned).
    """

    reference = "Molchanov et al., CVPR 2019"

    def __init__(
        self,
        criterion: Criterion | None = None,
        units: int = 10,
        examples: int = 640,
        momentum: float = 0.9,
        normalise: Normalisation = "none",
    ) -> None:
        check_integer("Iterative.units", units)
        check_integer("Iterative.examples", examples)
        check_number("Iterative.momentum", momentum, low=0, below=1)
        check_choice("Iterative.normalise", normalise, Normalisation)
        self.criterion = criterion or Taylor2019()
        self.units = units
        self.examples = examples
        self.momentum = momentum
        self.normalise: Normalisation = normalise

    def scores(
        self, network: nn.Module, groups: ChannelGroups, loader: Iterable[Any]
    ) -> ChannelScores:
        gated = GatedNetwork(network, groups)
        device = next(network.parameters()).device
        gates = {name: torch.ones(size, device=device) for name, size in groups.sizes.items()}
        average: dict[str, Tensor] = {}
        order: list[tuple[str, int]] = []
        for chunk in _chunks(loader, device, self.examples):
            found = self.criterion.scores(gated.fold(gates), groups, chunk)
            for name, values in found.normalised(self.normalise).values.items():
                past = average.get(name, values)
                average[name] = self.momentum * past + (1 - self.momentum) * values
            leaving = _lowest(average, gates)[: self.units]
            if not leaving:
                break
            for name, unit in leaving:
                gates[name][unit] = 0
            order += leaving
        last = [(name, int(gates[name].argmax())) for name in average]
        order += sorted(last, key=lambda unit: float(average[unit[0]][unit[1]]))
        places = {name: torch.zeros(len(values)) for name, values in average.items()}
        for place, (name, unit) in enumerate(order):
            places[name][unit] = place
        return ChannelScores(places, f"order of leaving by {type(self.criterion).__name__}")


def _lowest(scores: dict[str, Tensor], gates: dict[str, Tensor]) -> list[tuple[str, int]]:
    """The units that may leave, lowest score first: of each group all left but the best."""
    units = []
    for name, values in scores.items():
        left = gates[name].nonzero()[:, 0].tolist()
        units += sorted((float(values[unit]), name, unit) for unit in left)[:-1]
    return [(name, unit) for _, name, unit in sorted(units)]


def _chunks(loader: Iterable[Any], device: torch.device, size: int) -> Iterator[list[Batch]]:
    """Batches of `size` examples together, for ever; the loader starts over when it ends."""
    chunk, missing = [], size
    while True:
        for batch in batches(loader, device, "Iterative"):
            while len(batch[1]) >= missing:
                yield [*chunk, of_each(batch, lambda tensor, n=missing: tensor[:n])]
                batch = of_each(batch, lambda tensor, n=missing: tensor[n:])
                chunk, missing = [], size
            if len(batch[1]):
                chunk.append(batch)
                missing -= len(batch[1])
