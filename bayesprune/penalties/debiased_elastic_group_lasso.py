"""Debiased elastic group lasso."""

from __future__ import annotations

from torch import Tensor

from bayesprune._checks import check_number
from bayesprune.penalties._penalty import GroupProximalPenalty, State, total
from bayesprune.penalties._units import Scale, Units


class DebiasedElasticGroupLasso(GroupProximalPenalty):
    r"""Elastic group lasso to find the units, then ridge alone to train them.

    Like refitting after the lasso: the first phase selects, and in the second the units that are
    left are no longer pulled to 0 by :math:`\lambda`. `GroupLasso` and `ElasticGroupLasso` with the
    same `threshold` and `retrain` keep their penalty there.

    Parameters
    ----------
    strength : float
        :math:`\lambda` of the first phase, at least 0.
    ridge : float
        :math:`\gamma` of both phases, at least 0.
    scale : {"size", "macs", "none"}
        As in `GroupLasso`.
    threshold : float
        Norm below which a unit is removed after the first phase, at least 0.
    retrain : float
        Share of the steps in the second phase, in (0, 1).

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
        retrain: float = 0.5,
    ) -> None:
        super().__init__(strength, scale, threshold, retrain)
        check_number(f"{type(self).__name__}.ridge", ridge, low=0)
        check_number(f"{type(self).__name__}.retrain", retrain, above=0, below=1)
        self.ridge = ridge

    def value(self, units: Units, state: State) -> Tensor:
        return self.group_norm(units) + self.ridge * total(g.squares() for g in units.values())

    def prox(self, units: Units, rate: float) -> None:
        self.shrink(units, rate, self.ridge)

    def retrain_step(self, units: Units, rate: float) -> None:
        for group in units.values():
            group.scale_(group.sizes.new_full((group.size,), 1 / (1 + 2 * rate * self.ridge)))
