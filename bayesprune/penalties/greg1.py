"""Growing regularization with units chosen at the start."""

from __future__ import annotations

from torch import Tensor

from bayesprune._checks import check_number
from bayesprune.penalties._penalty import State, UnitPenalty, best, total
from bayesprune.penalties._units import Units
from bayesprune.training import Step


class GReg1(UnitPenalty):
    r"""Ridge that grows on the filters chosen to go, until they are gone.

    The filters with the smallest mean absolute weight of each group are chosen before the first
    step. Their loss gains :math:`\frac\gamma2 \|w\|^2`, with :math:`\gamma` rising linearly to
    `ceiling` over the first `growth` of the steps and staying there (the paper's stabilisation);
    they are set to 0 at the end. The paper adds 1e-4 every 5 or 10 iterations up to 1.

    Parameters
    ----------
    keep : float
        Share of the units of each group that is not chosen, in (0, 1], rounded up.
    ceiling : float
        Largest :math:`\gamma`, at least 0.
    growth : float
        Share of the steps in (0, 1].

    Raises
    ------
    ConfigError
        If a value is out of range.

    References
    ----------
    Wang et al., "Neural pruning via growing regularization", ICLR 2021.
    """

    reference = "Wang et al., ICLR 2021"
    extent = "filter"

    def __init__(self, keep: float = 0.5, ceiling: float = 1.0, growth: float = 0.7) -> None:
        owner = type(self).__name__
        check_number(f"{owner}.keep", keep, above=0, high=1)
        check_number(f"{owner}.ceiling", ceiling, low=0)
        check_number(f"{owner}.growth", growth, above=0, high=1)
        self.keep = keep
        self.ceiling = ceiling
        self.growth = growth

    def start(self, units: Units) -> State:
        return chosen(units, self.keep) | {"ridge": next(iter(units.values())).sizes.new_zeros(())}

    def value(self, units: Units, state: State) -> Tensor:
        going = (state[name] * group.squares() for name, group in units.items())
        return state["ridge"] / 2 * total(going)

    def after_step(self, units: Units, state: State, step: Step) -> None:
        state["ridge"].fill_(self.ceiling * min(1.0, step.progress / self.growth))
        if step.index == step.total - 1:
            for name, group in units.items():
                group.scale_(1 - state[name])


def chosen(units: Units, keep: float) -> State:
    """Ones for the units with the smallest mean absolute weight, shape ``(C,)`` per group."""
    means = {name: group.matrix().abs().sum(1) / group.sizes for name, group in units.items()}
    return {name: 1 - best(values, keep) for name, values in means.items()}
