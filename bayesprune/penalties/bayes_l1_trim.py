"""Trimmed group lasso."""

from __future__ import annotations

from torch import Tensor

from bayesprune._checks import check_number
from bayesprune.penalties._penalty import ProximalPenalty, State, best, total
from bayesprune.penalties._prox import group_soft_factors
from bayesprune.penalties._units import Units


class BayesL1Trim(ProximalPenalty):
    r"""Group lasso without a penalty for each layer's largest units.

    :math:`\lambda \min_v \sum_g v_g \|w_g\|` over :math:`v \in [0, 1]`, :math:`\sum v = C - h`: the
    h largest are free, so they are not biased towards 0. Its proximal operator shrinks the others.
    The paper uses the penalty inside a variational posterior; here it trains weights.

    Parameters
    ----------
    strength : float
        :math:`\lambda`, at least 0.
    keep : float
        h as a share of the units of each group, in (0, 1], rounded up.

    Raises
    ------
    ConfigError
        If a value is out of range.

    References
    ----------
    Yun et al., "Trimming the l1 regularizer", ICML 2019.
    """

    reference = "Yun et al., ICML 2019"

    def __init__(self, strength: float = 1e-2, keep: float = 0.5) -> None:
        check_number(f"{type(self).__name__}.strength", strength, low=0)
        check_number(f"{type(self).__name__}.keep", keep, above=0, high=1)
        self.strength = strength
        self.keep = keep

    def value(self, units: Units, state: State) -> Tensor:
        trimmed = (norms * (1 - best(norms, self.keep)) for norms in units.norms().values())
        return self.strength * total(trimmed)

    def prox(self, units: Units, rate: float) -> None:
        for group in units.values():
            norms = group.norms()
            level = rate * self.strength * (1 - best(norms, self.keep))
            group.scale_(group_soft_factors(norms, level))
