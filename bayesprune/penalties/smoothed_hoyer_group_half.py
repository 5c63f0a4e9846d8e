"""Smoothed Hoyer-square with a group half-norm."""

from __future__ import annotations

import torch
from torch import Tensor

from bayesprune._checks import check_number
from bayesprune.penalties._penalty import State, UnitPenalty, total
from bayesprune.penalties._units import Units
from bayesprune.penalties.group_hoyer_square import hoyer_square


class SmoothedHoyerGroupHalf(UnitPenalty):
    r"""Hoyer-square of smoothed unit norms plus their square roots ("SHSQ-GL1/2").

    :math:`\lambda \sum_l (\sum_j h_{lj})^2 / \sum_j h_{lj}^2 + \mu \sum_{lj} h_{lj}^{1/2}` with
    :math:`h = \|w\|` where that is at least a, and below it the polynomial
    :math:`-\|w\|^4 / 8a^3 + 3\|w\|^2 / 4a + 3a/8`, which meets it with two derivatives.
    The source was not found: this is our reading of the method's name, with the smoothing that is
    standard in its literature.

    Parameters
    ----------
    strength : float
        :math:`\lambda`, at least 0.
    half_strength : float
        :math:`\mu`, at least 0.
    width : float
        a, above 0.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    reference = "SHSQ-GL1/2 (our reading, source not found)"

    def __init__(
        self, strength: float = 1e-4, half_strength: float = 1e-4, width: float = 1e-2
    ) -> None:
        owner = type(self).__name__
        check_number(f"{owner}.strength", strength, low=0)
        check_number(f"{owner}.half_strength", half_strength, low=0)
        check_number(f"{owner}.width", width, above=0)
        self.strength = strength
        self.half_strength = half_strength
        self.width = width

    def value(self, units: Units, state: State) -> Tensor:
        smooth = [self.smoothed(norms) for norms in units.norms().values()]
        hoyer = total(hoyer_square(values) for values in smooth)
        return self.strength * hoyer + self.half_strength * total(v.sqrt() for v in smooth)

    def smoothed(self, norms: Tensor) -> Tensor:
        """The h of norms, at least 3a/8."""
        a, square = self.width, norms.square()
        polynomial = -square.square() / (8 * a**3) + 3 * square / (4 * a) + 3 * a / 8
        return torch.where(norms < a, polynomial, norms)
