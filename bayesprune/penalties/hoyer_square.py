"""The Hoyer-square penalty on single weights."""

from __future__ import annotations

from torch import Tensor, nn

from bayesprune._checks import check_number
from bayesprune.penalties._penalty import total
from bayesprune.penalties._weights import WeightPenalty
from bayesprune.penalties.group_hoyer_square import hoyer_square


class HoyerSquare(WeightPenalty):
    r"""Per layer, :math:`\lambda \|w\|_1^2 / \|w\|_2^2`, between 1 and the number of weights.

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
    Yang, Wen and Li, "DeepHoyer", ICLR 2020.
    """

    reference = "Yang et al., ICLR 2020"

    def __init__(self, strength: float = 1e-6) -> None:
        check_number(f"{type(self).__name__}.strength", strength, low=0)
        self.strength = strength

    def value(self, weights: dict[str, nn.Parameter]) -> Tensor:
        return self.strength * total(hoyer_square(weight.abs()) for weight in weights.values())
