"""Growing regularization that chooses units by how they resist."""

from __future__ import annotations

from torch import Tensor

from bayesprune._checks import check_number
from bayesprune.penalties._penalty import State, UnitPenalty, total
from bayesprune.penalties._units import Units
from bayesprune.penalties.greg1 import chosen
from bayesprune.training import Step


class GReg2(UnitPenalty):
    r"""Ridge that grows on all filters, then on those that it has made smallest.

    In the first `pick` of the steps the loss gains :math:`\frac\gamma2 \|w\|^2` for every filter,
    with :math:`\gamma` rising linearly to `start_ceiling`: weights that the loss holds on to shrink
    less. Then the smallest are chosen, and the rest of the steps is `GReg1`. The paper adds 1e-5
    every 5 or 10 iterations up to 1e-2 before it chooses.

    Parameters
    ----------
    keep : float
        Share of the units of each group that is not chosen, in (0, 1], rounded up.
    start_ceiling : float
        Largest :math:`\gamma` of all filters, at least 0.
    pick : float
        Share of the steps, in (0, 1), after which units are chosen.
    ceiling : float
        Largest :math:`\gamma` of the chosen ones, at least 0.
    growth : float
        Share of the remaining steps in (0, 1].

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

    def __init__(
        self,
        keep: float = 0.5,
        start_ceiling: float = 1e-2,
        pick: float = 0.3,
        ceiling: float = 1.0,
        growth: float = 0.7,
    ) -> None:
        owner = type(self).__name__
        check_number(f"{owner}.keep", keep, above=0, high=1)
        check_number(f"{owner}.start_ceiling", start_ceiling, low=0)
        check_number(f"{owner}.pick", pick, above=0, below=1)
        check_number(f"{owner}.ceiling", ceiling, low=0)
        check_number(f"{owner}.growth", growth, above=0, high=1)
        self.keep = keep
        self.start_ceiling = start_ceiling
        self.pick = pick
        self.ceiling = ceiling
        self.growth = growth

    def start(self, units: Units) -> State:
        # The ridge of each unit.
        return {name: group.sizes.new_zeros(group.size) for name, group in units.items()}

    def value(self, units: Units, state: State) -> Tensor:
        return total(state[name] * group.squares() for name, group in units.items()) / 2

    def after_step(self, units: Units, state: State, step: Step) -> None:
        picking = max(1, round(self.pick * step.total))
        done = step.index + 1
        if done < picking:
            for ridge in state.values():
                ridge.fill_(self.start_ceiling * done / picking)
            return
        if done == picking:
            for name, going in chosen(units, self.keep).items():
                state[name].copy_(going * self.start_ceiling)
        progress = (done - picking) / max(1, step.total - picking)
        grown = self.start_ceiling + (self.ceiling - self.start_ceiling) * progress / self.growth
        for name, ridge in state.items():
            going = ridge > 0
            ridge.copy_(going * min(self.ceiling, grown))
            if done == step.total:
                units[name].scale_(1.0 - going.to(ridge))
