"""The Hoyer penalty on single weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bayesprune._checks import check_number
from bayesprune.penalties._penalty import total
from bayesprune.penalties._weights import WeightPenalty


class Hoyer(WeightPenalty):
    r"""Per layer, :math:`\lambda \|w\|_1 / \|w\|_2`: sparsity whatever the scale.

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
    Hoyer, JMLR 2004; Yang, Wen and Li, "DeepHoyer", ICLR 2020.
    """

    reference = "Hoyer, JMLR 2004; Yang et al., ICLR 2020"

    def __init__(self, strength: float = 1e-4) -> None:
        check_number(f"{type(self).__name__}.strength", strength, low=0)
        self.strength = strength

    def value(self, weights: dict[str, nn.Parameter]) -> Tensor:
        ratios = []
        for weight in weights.values():
            tiny = torch.finfo(weight.dtype).tiny
            ratios.append(weight.abs().sum() / weight.square().sum().clamp_min(tiny).sqrt())
        return self.strength * total(ratios)
