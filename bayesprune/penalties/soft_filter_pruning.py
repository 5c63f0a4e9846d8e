"""Soft filter pruning."""

from __future__ import annotations

from torch import Tensor

from bayesprune._checks import check_number
from bayesprune.penalties._penalty import State, UnitPenalty, best
from bayesprune.penalties._units import Units
from bayesprune.training import Step


class SoftFilterPruning(UnitPenalty):
    """Sets the smallest filters to 0 after each epoch, and lets them grow again.

    What the last epoch sets to 0 is removed. Nothing is added to the loss.

    Parameters
    ----------
    keep : float
        Share of the filters of each group that stay, in (0, 1], rounded up.

    Raises
    ------
    ConfigError
        If `keep` is out of range.

    References
    ----------
    He et al., "Soft filter pruning for accelerating deep convolutional neural networks",
    IJCAI 2018.
    """

    reference = "He et al., IJCAI 2018"
    extent = "filter"

    def __init__(self, keep: float = 0.7) -> None:
        check_number(f"{type(self).__name__}.keep", keep, above=0, high=1)
        self.keep = keep

    def value(self, units: Units, state: State) -> Tensor:
        return next(iter(units.values())).sizes.new_zeros(())

    def loss(self, units: Units, state: State) -> None:
        return None

    def after_step(self, units: Units, state: State, step: Step) -> None:
        if step.ends_epoch:
            for group in units.values():
                group.scale_(best(group.norms(), self.keep))
