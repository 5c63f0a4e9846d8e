"""Group structured sparsity with any inner norm, through its auxiliary form."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from bayesprune._checks import check_number
from bayesprune.errors import ConfigError
from bayesprune.penalties._penalty import State, UnitPenalty
from bayesprune.penalties._prox import safe_root
from bayesprune.penalties._units import Units
from bayesprune.training import Step


class GSSAuxiliary(UnitPenalty):
    r"""Root of the sum over layers of squared :math:`\ell_r` norms of unit norms, :math:`r \le 2`.

    For :math:`q > 0`, :math:`\|s\|_r^2 = \min_\eta \sum_j s_j^2 / \eta_j` over :math:`\eta \ge 0`,
    :math:`\|\eta\|_q \le 1`, with :math:`r = 2q / (q + 1)`; the minimiser is proportional to
    :math:`s^{2/(q+1)}`. With :math:`\sqrt x = \min_t (x/t + t)/2` the penalty is a weighted ridge:
    after each step of the optimizer, :math:`\eta` and t take their closed forms, and each unit is
    divided by :math:`1 + \text{rate} \cdot \lambda / (\eta_j t)`. Linear cost, no exact zeros.

    Parameters
    ----------
    strength : float
        :math:`\lambda`, at least 0.
    q : float
        Above 0: 1 is the norm of `GSS212`, 2 has :math:`r = 4/3`, infinity is the l2 norm.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    reference = "GSS (supplement), auxiliary form derived here"

    def __init__(self, strength: float = 1e-4, q: float = 1.0) -> None:
        check_number(f"{type(self).__name__}.strength", strength, low=0)
        if isinstance(q, bool) or not isinstance(q, int | float) or not q > 0:
            raise ConfigError(f"{type(self).__name__}.q: expected a number above 0, got {q!r}")
        self.strength = strength
        self.q = q

    @property
    def exponent(self) -> float:
        """The r of the norm over the units of a layer, in (0, 2]."""
        return 2.0 if math.isinf(self.q) else 2 * self.q / (self.q + 1)

    def auxiliary(self, norms: Tensor) -> Tensor:
        """The minimiser over eta, shape ``(C,)``, for the norms of a layer's units."""
        if math.isinf(self.q):
            return torch.ones_like(norms)
        powers = norms ** (2 / (self.q + 1))
        size = (powers**self.q).sum() ** (1 / self.q)
        return powers / size.clamp_min(torch.finfo(size.dtype).tiny)

    def _norm(self, norms: Mapping[str, Tensor]) -> Tensor:
        """The root of the sum over layers."""
        squares = []
        for values in norms.values():
            alive = values[values > 0]  # powers below 1 have no gradient at 0
            squares.append((alive**self.exponent).sum() ** (2 / self.exponent))
        return safe_root(torch.stack(squares).sum())

    def value(self, units: Units, state: State) -> Tensor:
        return self.strength * self._norm(units.norms())

    def loss(self, units: Units, state: State) -> None:
        return None

    def after_step(self, units: Units, state: State, step: Step) -> None:
        norms = units.norms()
        whole = self._norm(norms)
        for name, group in units.items():
            weight = self.auxiliary(norms[name]) * whole
            pull = step.rate * self.strength
            group.scale_(torch.where(weight + pull > 0, weight / (weight + pull), 1.0))
