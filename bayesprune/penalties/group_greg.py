"""Growing regularization on coupled channels."""

from __future__ import annotations

from torch import Tensor

from bayesprune._checks import check_number
from bayesprune.penalties._penalty import State, UnitPenalty, total
from bayesprune.penalties._units import Units
from bayesprune.training import Step


class GroupGReg(UnitPenalty):
    r"""Ridge that grows the faster, the smaller the unit.

    The loss gains :math:`\frac12 \sum_k \gamma_k \|w_k\|^2`, and after each step :math:`\gamma_k`
    grows by :math:`\delta (\max - I_k^2) / (\max - \min)`, with the squared norms :math:`I_k^2` of
    the group's units: the largest is spared, the smallest gets all of it.

    Parameters
    ----------
    growth : float
        :math:`\delta`, at least 0.

    Raises
    ------
    ConfigError
        If the growth is out of range.

    References
    ----------
    Fang et al., "DepGraph: towards any structural pruning", CVPR 2023, with Wang et al., ICLR 2021.
    """

    reference = "Fang et al., CVPR 2023; Wang et al., ICLR 2021"

    def __init__(self, growth: float = 1e-5) -> None:
        check_number(f"{type(self).__name__}.growth", growth, low=0)
        self.growth = growth

    def start(self, units: Units) -> State:
        return {name: group.sizes.new_zeros(group.size) for name, group in units.items()}

    def value(self, units: Units, state: State) -> Tensor:
        return total(state[name] * group.squares() for name, group in units.items()) / 2

    def after_step(self, units: Units, state: State, step: Step) -> None:
        for name, group in units.items():
            state[name].add_(self.growth * distance(group.squares()))


def distance(sizes: Tensor) -> Tensor:
    """How far each value is below the largest: 0 for the largest, 1 for the smallest."""
    spread = sizes.max() - sizes.min()
    return (sizes.max() - sizes) / spread if spread > 0 else sizes * 0
