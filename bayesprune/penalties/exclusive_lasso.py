"""Exclusive lasso."""

from __future__ import annotations

from torch import Tensor

from bayesprune._checks import check_number
from bayesprune.penalties._penalty import ProximalPenalty, State, total
from bayesprune.penalties._prox import exclusive_level, soft
from bayesprune.penalties._units import Units


class ExclusiveLasso(ProximalPenalty):
    r"""Half the squared sums of the units' absolute weights.

    :math:`\frac\lambda2 \sum_g \|w_g\|_1^2`: the weights of a unit compete with each other. No unit
    becomes 0 as a whole unless the data leave nothing in it.

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
    Zhou, Jin and Hoi, "Exclusive lasso for multi-task feature selection", AISTATS 2010; Yoon and
    Hwang, "Combined group and exclusive sparsity for deep neural networks", ICML 2017.
    """

    reference = "Zhou et al., AISTATS 2010; Yoon & Hwang, ICML 2017"

    def __init__(self, strength: float = 1e-5) -> None:
        check_number(f"{type(self).__name__}.strength", strength, low=0)
        self.strength = strength

    def value(self, units: Units, state: State) -> Tensor:
        sums = (group.matrix().abs().sum(1) for group in units.values())
        return self.strength / 2 * total(values.square() for values in sums)

    def prox(self, units: Units, rate: float) -> None:
        for group in units.values():
            matrix = group.matrix()
            strength = matrix.new_full((group.size,), rate * self.strength)
            group.write_(soft(matrix, exclusive_level(matrix.abs(), strength)[:, None]))
