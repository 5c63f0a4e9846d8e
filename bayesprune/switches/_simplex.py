"""What switches on the simplex share: the gate mass of a group."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from bayesprune.errors import ConfigError
from bayesprune.estimators import AnalyticMean, Estimator
from bayesprune.switches._switch import Switch

Total = Literal["size", "keep", "anneal"] | float


class SimplexSwitch(Switch):
    """Abstract: gates are ``mass * share`` with shares on the simplex.

    The mass decides what the simplex can say. With mass C the mean gate is 1 and no gate is
    pressed to be 0; with mass k, the number of channels to keep, the gates compete for k places.

    Parameters
    ----------
    total : {"size", "keep", "anneal"} or float
        Gate mass: the group's size C; the number of channels to keep, taken from the budget; from
        C to that number along the first half of the fit, geometrically; or a number of channels.
    """

    mass: Tensor

    def __init__(self, total: Total) -> None:
        super().__init__()
        if isinstance(total, int | float):
            known = 0 < total < math.inf
        else:
            known = total in ("size", "keep", "anneal")
        if not known:
            raise ConfigError(
                f"total: expected 'size', 'keep', 'anneal' or a positive number, got {total!r}"
            )
        self.total = total

    @property
    def needs_keep(self) -> bool:
        return self.total in ("keep", "anneal")

    def initialise(self, keep: float | None) -> None:
        if self.needs_keep:
            if keep is None:
                raise ConfigError(
                    f"total={self.total!r} needs the number of channels to keep: give "
                    "SwitchedNetwork keep=..., or a budget to the run"
                )
            target = float(keep)
        else:
            target = float(self.size if self.total == "size" else self.total)
        self.target = min(target, float(self.size))
        self.register_buffer("mass", torch.tensor(self.target))
        self.anneal(0.0)

    def anneal(self, progress: float) -> None:
        if self.total == "anneal":
            done = min(1.0, 2 * progress)
            self.mass.fill_(self.size * (self.target / self.size) ** done)

    def importance(self) -> Tensor:
        """The mean share relative to an equal share: 1 = average, whatever the mass."""
        return self.mean() * (self.size / self.mass)

    def threshold(self) -> float:
        """Half of an open gate."""
        return 0.5 * self.size / self.mass.item()

    def estimator(self) -> Estimator:
        return AnalyticMean()
