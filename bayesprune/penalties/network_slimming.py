"""Network slimming."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bayesprune._checks import check_number
from bayesprune.errors import ConfigError
from bayesprune.penalties._penalty import ProximalPenalty, State, total
from bayesprune.penalties._prox import soft
from bayesprune.penalties._units import Units


class NetworkSlimming(ProximalPenalty):
    r"""The absolute scales of batch normalisation, :math:`\lambda \sum |\gamma|`.

    Groups without batch normalisation are not penalised, and scored by the norms of their units. A
    unit with several scales has the root of their summed squares as score.

    Parameters
    ----------
    strength : float
        :math:`\lambda`, at least 0.

    Raises
    ------
    ConfigError
        If the strength is out of range; on use, if no group has a batch normalisation.

    References
    ----------
    Liu et al., "Learning efficient convolutional networks through network slimming", ICCV 2017.
    There by subgradient; here with the proximal operator, which gives exact zeros.
    """

    reference = "Liu et al., ICCV 2017"

    def __init__(self, strength: float = 1e-4) -> None:
        check_number(f"{type(self).__name__}.strength", strength, low=0)
        self.strength = strength

    def start(self, units: Units) -> State:
        if not _scales(units):
            raise ConfigError(
                "NetworkSlimming: expected a network with batch normalisation, got none in "
                f"{', '.join(units)}"
            )
        return {}

    def value(self, units: Units, state: State) -> Tensor:
        return self.strength * total(gamma.abs() for gamma in _scales(units))

    def prox(self, units: Units, rate: float) -> None:
        for gamma in _scales(units):
            gamma.copy_(soft(gamma, rate * self.strength))

    def shrunk(self, units: Units) -> list[nn.Parameter]:
        return _scales(units)

    def scores(self, units: Units, state: State) -> dict[str, Tensor]:
        scores = units.norms()
        for name, group in units.items():
            squares, scaled = torch.zeros_like(scores[name]), False
            for part in group.parts:
                if part.gamma is not None:
                    squares.index_add_(0, part.units, part.gamma[part.rows].square())
                    scaled = True
            if scaled:
                scores[name] = squares.sqrt()
        return scores


def _scales(units: Units) -> list[nn.Parameter]:
    gammas = (part.gamma for group in units.values() for part in group.parts)
    return list(dict.fromkeys(gamma for gamma in gammas if gamma is not None))
