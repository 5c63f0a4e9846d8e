"""Group structured sparsity with the norm 2-1-2: neurons compete, layers cooperate."""

from __future__ import annotations

import torch
from torch import Tensor

from bayesprune._checks import check_number
from bayesprune.penalties._penalty import ProximalPenalty, State
from bayesprune.penalties._prox import group_soft_factors, mixed_levels, mixed_norm
from bayesprune.penalties._units import Units


class GSS212(ProximalPenalty):
    r"""Root of the sum over layers of squared sums of unit norms.

    :math:`\lambda \sqrt{\sum_l (\sum_j \|w_{lj}\|_2)^2}`: the units of a layer compete (l1), the
    layers cooperate (l2), so that none dies before the others. This is our reading of GSS-structure
    from its supplement; the paper itself was not found.

    Parameters
    ----------
    strength : float
        :math:`\lambda`, at least 0.

    Raises
    ------
    ConfigError
        If the strength is out of range.

    Notes
    -----
    The proximal operator is exact in the unit norms. Where units of different groups share weights,
    its factors multiply.
    """

    reference = "GSS-structure (supplement, our reading)"

    def __init__(self, strength: float = 1e-4) -> None:
        check_number(f"{type(self).__name__}.strength", strength, low=0)
        self.strength = strength

    def value(self, units: Units, state: State) -> Tensor:
        return self.strength * mixed_norm(_table(units.norms()))

    def prox(self, units: Units, rate: float) -> None:
        norms = units.norms()
        table = _table(norms)
        levels = mixed_levels(table, table.new_tensor(rate * self.strength))
        for (name, group), level in zip(units.items(), levels, strict=True):
            group.scale_(group_soft_factors(norms[name], level))


def _table(norms: dict[str, Tensor]) -> Tensor:
    """Shape ``(groups, units)``, with zeros behind the units of small groups."""
    return torch.nn.utils.rnn.pad_sequence(list(norms.values()), batch_first=True)
