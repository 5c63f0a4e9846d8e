"""The lasso on single weights."""

from __future__ import annotations

from torch import Tensor, nn

from bayesprune._checks import check_number
from bayesprune.penalties._penalty import State, total
from bayesprune.penalties._prox import soft
from bayesprune.penalties._weights import WeightPenalty
from bayesprune.training import Step


class Lasso(WeightPenalty):
    r"""The sum of absolute weights, :math:`\lambda \sum |w|`, by soft thresholding after each step.

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
    Tibshirani, JRSS B 1996.
    """

    reference = "Tibshirani, 1996"

    def __init__(self, strength: float = 1e-5) -> None:
        check_number(f"{type(self).__name__}.strength", strength, low=0)
        self.strength = strength

    def value(self, weights: dict[str, nn.Parameter]) -> Tensor:
        return self.strength * total(weight.abs() for weight in weights.values())

    def loss(self, weights: dict[str, nn.Parameter]) -> None:
        return None

    def after_step(self, weights: dict[str, nn.Parameter], state: State, step: Step) -> None:
        for weight in weights.values():
            weight.copy_(soft(weight, step.rate * self.strength))
