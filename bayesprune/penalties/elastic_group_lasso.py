"""Elastic group lasso."""

from __future__ import annotations

from torch import Tensor

from bayesprune._checks import check_number
from bayesprune.penalties._penalty import GroupProximalPenalty, State, total
from bayesprune.penalties._units import Scale, Units


class ElasticGroupLasso(GroupProximalPenalty):
    r"""Group lasso plus ridge: :math:`\lambda \sum_g m_g \|w_g\|_2 + \gamma \sum_g \|w_g\|_2^2`.

    Its proximal operator is that of group lasso divided by :math:`1 + 2\eta\gamma`.

    Parameters
    ----------
    strength : float
        :math:`\lambda`, at least 0.
    ridge : float
        :math:`\gamma`, at least 0.
    scale, threshold, retrain
        As in `GroupLasso`.

    Raises
    ------
    ConfigError
        If a value is out of range.

    References
    ----------
    Oyedotun et al., "Structured compression of deep neural networks with debiased elastic group
    lasso", WACV 2020.
    """

    reference = "Oyedotun et al., WACV 2020"

    def __init__(
        self,
        strength: float = 1e-4,
        ridge: float = 1e-4,
        scale: Scale = "size",
        threshold: float = 0.0,
        retrain: float = 0.0,
    ) -> None:
        super().__init__(strength, scale, threshold, retrain)
        check_number(f"{type(self).__name__}.ridge", ridge, low=0)
        self.ridge = ridge

    def value(self, units: Units, state: State) -> Tensor:
        return self.group_norm(units) + self.ridge * total(g.squares() for g in units.values())

    def prox(self, units: Units, rate: float) -> None:
        self.shrink(units, rate, self.ridge)
