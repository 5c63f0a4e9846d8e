"""The transformed l1 penalty on single weights."""

from __future__ import annotations

from torch import Tensor, nn

from bayesprune._checks import check_number
from bayesprune.penalties._penalty import total
from bayesprune.penalties._weights import WeightPenalty


class TransformedLasso(WeightPenalty):
    r"""Bounded lasso, :math:`\lambda \sum (a + 1) |w| / (a + |w|)`: between l0 and l1.

    Parameters
    ----------
    strength : float
        :math:`\lambda`, at least 0.
    a : float
        Above 0; small is close to l0, large to l1.

    Raises
    ------
    ConfigError
        If a value is out of range.

    References
    ----------
    Ma, Miao, Niu and Zhang, "Transformed l1 regularization for learning sparse deep neural
    networks", Neural Networks 2019.
    """

    reference = "Ma et al., Neural Networks 2019"

    def __init__(self, strength: float = 1e-5, a: float = 1.0) -> None:
        check_number(f"{type(self).__name__}.strength", strength, low=0)
        check_number(f"{type(self).__name__}.a", a, above=0)
        self.strength = strength
        self.a = a

    def value(self, weights: dict[str, nn.Parameter]) -> Tensor:
        sizes = (weight.abs() for weight in weights.values())
        return self.strength * total((self.a + 1) * size / (self.a + size) for size in sizes)
