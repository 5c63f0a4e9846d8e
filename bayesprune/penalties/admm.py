"""Alternating direction method of multipliers."""

from __future__ import annotations

from torch import Tensor

from bayesprune._checks import check_number
from bayesprune.penalties._penalty import State, UnitPenalty, best, total
from bayesprune.penalties._units import Units
from bayesprune.training import Step


class ADMM(UnitPenalty):
    r"""Draws the weights towards the nearest ones with few units, then cuts to these.

    The loss gains :math:`\frac\rho2 \|W - Z + U\|^2`. After each epoch Z becomes W + U without the
    smallest units of each group, and U, which starts at 0, gains W - Z. :math:`\rho` rises
    geometrically. In the last `retrain` of the steps the units that Z lacks are 0, and the others
    are trained on by the loss alone.

    Parameters
    ----------
    keep : float
        Share of the units of each group that Z has, in (0, 1], rounded up.
    low, high : float
        First and last :math:`\rho`, above 0.
    retrain : float
        In [0, 1).

    Raises
    ------
    ConfigError
        If a value is out of range.

    References
    ----------
    Zhang et al., "A systematic DNN weight pruning framework using alternating direction method of
    multipliers", ECCV 2018; for filters Li et al., "Compressing convolutional neural networks via
    factorized convolutional filters", CVPR 2019.
    """

    reference = "Zhang et al., ECCV 2018"

    def __init__(
        self, keep: float = 0.5, low: float = 1e-4, high: float = 1e-2, retrain: float = 0.3
    ) -> None:
        owner = type(self).__name__
        check_number(f"{owner}.keep", keep, above=0, high=1)
        check_number(f"{owner}.low", low, above=0)
        check_number(f"{owner}.high", high, above=0)
        check_number(f"{owner}.retrain", retrain, low=0, below=1)
        self.keep = keep
        self.low = low
        self.high = high
        self.retrain = retrain

    def start(self, units: Units) -> State:
        state: State = {"rho": next(iter(units.values())).sizes.new_tensor(self.low)}
        for name, group in units.items():
            vectors = group.matrix()
            state[f"kept {name}"] = best(group.norms(), self.keep)
            state[f"Z {name}"] = vectors * state[f"kept {name}"][:, None]
            state[f"U {name}"] = vectors.new_zeros(vectors.shape)
        return state

    def value(self, units: Units, state: State) -> Tensor:
        gaps = (
            (group.matrix() - state[f"Z {name}"] + state[f"U {name}"]).square()
            for name, group in units.items()
        )
        return state["rho"] / 2 * total(gaps)

    def after_step(self, units: Units, state: State, step: Step) -> None:
        drawing = max(1, round((1 - self.retrain) * step.total))
        done = step.index + 1
        if done < drawing:
            state["rho"].fill_(self.low * (self.high / self.low) ** (done / drawing))
            if step.ends_epoch:
                for name, group in units.items():
                    self._project(name, group.matrix(), state)
            return
        if done == drawing:
            state["rho"].zero_()
            for name, group in units.items():
                self._project(name, group.matrix(), state)
        for name, group in units.items():
            group.scale_(state[f"kept {name}"])

    def _project(self, name: str, vectors: Tensor, state: State) -> None:
        target = vectors + state[f"U {name}"]
        kept = best(target.norm(dim=1), self.keep)
        state[f"kept {name}"].copy_(kept)
        state[f"Z {name}"].copy_(target * kept[:, None])
        state[f"U {name}"].copy_(target - state[f"Z {name}"])
