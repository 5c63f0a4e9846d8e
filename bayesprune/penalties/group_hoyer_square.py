"""Group Hoyer-square."""

from __future__ import annotations

import torch
from torch import Tensor

from bayesprune._checks import check_number
from bayesprune.penalties._penalty import State, UnitPenalty, total
from bayesprune.penalties._units import Units


class GroupHoyerSquare(UnitPenalty):
    r"""Per layer, the squared sum of unit norms over the sum of their squares.

    :math:`\lambda \sum_l (\sum_j \|w_{lj}\|)^2 / \sum_j \|w_{lj}\|^2`, between 1 and the number of
    units that are not 0: the scale of a layer does not matter, and only units below
    :math:`\sum_j \|w_j\|^2 / \sum_j \|w_j\|` are pushed down. Differentiable, so no exact zeros.

    Parameters
    ----------
    strength : float
        :math:`\lambda`, at least 0.

    Raises
    ------
    ConfigError
        If the strength is out of range.

    References
    ----------
    Yang, Wen and Li, "DeepHoyer", ICLR 2020.
    """

    reference = "Yang et al., ICLR 2020"

    def __init__(self, strength: float = 1e-4) -> None:
        check_number(f"{type(self).__name__}.strength", strength, low=0)
        self.strength = strength

    def value(self, units: Units, state: State) -> Tensor:
        return self.strength * total(hoyer_square(norms) for norms in units.norms().values())


def hoyer_square(magnitudes: Tensor) -> Tensor:
    """The squared sum over the sum of squares; 0 where all are 0."""
    squares = magnitudes.square().sum()
    return magnitudes.sum().square() / squares.clamp_min(torch.finfo(squares.dtype).tiny)
