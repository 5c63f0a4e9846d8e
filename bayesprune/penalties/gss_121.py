"""Group structured sparsity with the norm 1-2-1: weights compete, both sides cooperate."""

from __future__ import annotations

import torch
from torch import Tensor

from bayesprune._checks import check_integer, check_number
from bayesprune.penalties._penalty import ProximalPenalty, State, total
from bayesprune.penalties._prox import mixed_levels, mixed_norm, soft
from bayesprune.penalties._units import UnitGroup, Units
from bayesprune.training import Step


class GSS121(ProximalPenalty):
    r"""Sum over units of :math:`\sqrt{\|w^{in}\|_1^2 + \|w^{out}\|_1^2}`, times :math:`\lambda`.

    Weights on either side of a unit compete (l1), what produces it and what reads it cooperate
    (l2), units compete (l1). This is Deep GSS 121, which we take for GSS-element; the supplement
    does not say which of the two norms that is.

    Parameters
    ----------
    strength : float
        :math:`\lambda`, at least 0.
    every : int
        At least 1: the proximal operator, which costs more than a step of a small network, follows
        each `every`-th step and is taken `every` times as long.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    reference = "Deep GSS 121 (supplement)"

    def __init__(self, strength: float = 1e-5, every: int = 1) -> None:
        check_number(f"{type(self).__name__}.strength", strength, low=0)
        check_integer(f"{type(self).__name__}.every", every)
        self.strength = strength
        self.every = every

    def value(self, units: Units, state: State) -> Tensor:
        sides = (_sides(group) for group in units.values())
        return self.strength * total(mixed_norm(magnitudes.abs()) for magnitudes in sides)

    def after_step(self, units: Units, state: State, step: Step) -> None:
        if (step.index + 1) % self.every == 0:
            self.prox(units, step.rate * self.every)

    def prox(self, units: Units, rate: float) -> None:
        for group in units.values():
            sides = _sides(group)
            level = sides.new_full((group.size,), rate * self.strength)
            levels = mixed_levels(sides.abs(), level)
            shrunk = soft(sides, levels[..., None])
            group.write_(_joined(shrunk, group))


def _sides(group: UnitGroup) -> Tensor:
    """What produces the units and what reads them, shape ``(C, 2, K)``, the shorter with zeros."""
    matrix, first = group.matrix(), group.produced
    rest = matrix.shape[1] - first
    sides = matrix.new_zeros(group.size, 2, max(first, rest))
    sides[:, 0, :first] = matrix[:, :first]
    sides[:, 1, :rest] = matrix[:, first:]
    return sides


def _joined(sides: Tensor, group: UnitGroup) -> Tensor:
    first = group.produced
    return torch.cat([sides[:, 0, :first], sides[:, 1]], 1)
