"""Group-norm pruner of DepGraph."""

from __future__ import annotations

from torch import Tensor

from bayesprune._checks import check_number
from bayesprune.penalties._penalty import State, UnitPenalty, total
from bayesprune.penalties._units import Units
from bayesprune.penalties.group_greg import distance
from bayesprune.training import Step


class GroupPruner(UnitPenalty):
    r"""Ridge that is up to 16 times stronger for small units.

    The loss gains :math:`\frac\lambda2 \sum_k \gamma_k \|w_k\|^2` with
    :math:`\gamma_k = 2^{4 (I_{\max} - I_k) / (I_{\max} - I_{\min})}` for the norms :math:`I_k` of
    the group's units after the step before.

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
    Fang et al., "DepGraph: towards any structural pruning", CVPR 2023.
    """

    reference = "Fang et al., CVPR 2023"

    def __init__(self, strength: float = 1e-4) -> None:
        check_number(f"{type(self).__name__}.strength", strength, low=0)
        self.strength = strength

    def start(self, units: Units) -> State:
        return {name: _weights(norms) for name, norms in units.norms().items()}

    def value(self, units: Units, state: State) -> Tensor:
        squares = (state[name] * group.squares() for name, group in units.items())
        return self.strength / 2 * total(squares)

    def after_step(self, units: Units, state: State, step: Step) -> None:
        for name, norms in units.norms().items():
            state[name].copy_(_weights(norms))


def _weights(norms: Tensor) -> Tensor:
    return 2 ** (4 * distance(norms))
