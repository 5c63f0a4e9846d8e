"""Sparsity by a redundant factorisation of each unit."""

from __future__ import annotations

import torch
from torch import Tensor

from bayesprune._checks import check_integer, check_number
from bayesprune.penalties._gated import GatePenalty, Gates
from bayesprune.penalties._penalty import total


class Spred(GatePenalty):
    r"""Ridge on the factors of each unit: group lasso and beyond without its corners.

    The weights that read a unit become :math:`w = s_1 \cdots s_{D-1} v`, and the loss gains
    :math:`\frac\lambda D \sum (s_1^2 + \dots + s_{D-1}^2 + \|v\|^2)`. Its minimum over all factors
    of the same w is :math:`\lambda \|w\|^{2/D}`: for two factors group lasso, for more D-gating,
    which is not convex. Any optimizer works, and zeros are approached but not reached.

    Parameters
    ----------
    strength : float
        :math:`\lambda`, at least 0.
    depth : int
        D, at least 2.

    Raises
    ------
    ConfigError
        If a value is out of range.

    References
    ----------
    Ziyin and Wang, "spred: Solving L1 penalty with SGD", ICML 2023; for more than two factors,
    D-gating, 2025.
    """

    reference = "Ziyin & Wang, ICML 2023; D-gating, 2025"

    def __init__(self, strength: float = 1e-3, depth: int = 2) -> None:
        check_number(f"{type(self).__name__}.strength", strength, low=0)
        check_integer(f"{type(self).__name__}.depth", depth, least=2)
        self.strength = strength
        self.depth = depth

    @property
    def factors(self) -> int:  # type: ignore[override]
        return self.depth - 1

    def start(self, gates: Gates) -> None:
        """Factors of equal size, at which their ridge is what it stands for."""
        for name, squares in gates.squares().items():
            # A unit that nobody reads has gates of 1, so that it may come back.
            balanced = torch.where(squares > 0, squares, 1.0) ** (1 / (2 * self.depth))
            gates.factor[name].copy_(balanced.expand_as(gates.factor[name]))
            gates.divide_(name, balanced**self.factors)

    def value(self, gates: Gates) -> Tensor:
        squares = [factor.square() for factor in gates.factor.values()]
        squares += gates.squares().values()
        return self.strength / self.depth * total(squares)

    def loss(self, gates: Gates) -> Tensor | None:
        return self.value(gates)
