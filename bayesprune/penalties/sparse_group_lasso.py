"""Sparse group lasso."""

from __future__ import annotations

from torch import Tensor

from bayesprune._checks import check_choice, check_number
from bayesprune.penalties._penalty import ProximalPenalty, State, total
from bayesprune.penalties._prox import group_soft_factors, soft
from bayesprune.penalties._units import Scale, Units


class SparseGroupLasso(ProximalPenalty):
    r"""Group lasso plus lasso: :math:`\lambda \sum_g m_g \|w_g\|_2 + \mu \sum_g \|w_g\|_1`.

    Its proximal operator is soft thresholding of the weights, then of the units.

    Parameters
    ----------
    strength : float
        :math:`\lambda`, at least 0.
    element_strength : float
        :math:`\mu`, at least 0.
    scale : {"size", "macs", "none"}
        :math:`m_g`, as in `GroupLasso`.

    Raises
    ------
    ConfigError
        If a value is out of range.

    References
    ----------
    Simon et al., "A sparse-group lasso", JCGS 2013.
    """

    reference = "Simon et al., JCGS 2013"

    def __init__(
        self, strength: float = 1e-4, element_strength: float = 1e-5, scale: Scale = "size"
    ) -> None:
        owner = type(self).__name__
        check_number(f"{owner}.strength", strength, low=0)
        check_number(f"{owner}.element_strength", element_strength, low=0)
        check_choice(f"{owner}.scale", scale, Scale)
        self.strength = strength
        self.element_strength = element_strength
        self.scale = scale

    def value(self, units: Units, state: State) -> Tensor:
        groups = total(units.multipliers[n] * group.norms() for n, group in units.items())
        elements = total(group.matrix().abs() for group in units.values())
        return self.strength * groups + self.element_strength * elements

    def prox(self, units: Units, rate: float) -> None:
        for name, group in units.items():
            matrix = soft(group.matrix(), rate * self.element_strength)
            level = rate * self.strength * units.multipliers[name]
            group.write_(matrix * group_soft_factors(matrix.norm(dim=1), level)[:, None])
