"""Sparse structure selection."""

from __future__ import annotations

from torch import Tensor

from bayesprune._checks import check_number
from bayesprune.penalties._gated import GatePenalty, Gates
from bayesprune.penalties._penalty import total
from bayesprune.penalties._prox import soft
from bayesprune.training import Step


class SparseStructureSelection(GatePenalty):
    r"""A scale on each unit with an l1 penalty, by accelerated proximal gradient.

    The scales start at 1 and are stepped apart from the optimizer, with momentum m:
    :math:`z = S_{\eta\lambda}(s - \eta g)`, :math:`v \leftarrow z - s + m v`,
    :math:`s \leftarrow \max(0, z + m v)`, where S is soft thresholding. They are folded into the
    weights at the end; a unit's score is its scale times the norm of what reads it.

    Parameters
    ----------
    strength : float
        :math:`\lambda`, at least 0.
    momentum : float
        m in [0, 1).
    rate : float
        The scales' learning rate in units of the optimizer's, above 0.

    Raises
    ------
    ConfigError
        If a value is out of range.

    References
    ----------
    Huang and Wang, "Data-driven sparse structure selection for deep neural networks", ECCV 2018.
    """

    reference = "Huang & Wang, ECCV 2018"

    def __init__(self, strength: float = 1e-2, momentum: float = 0.9, rate: float = 1.0) -> None:
        owner = type(self).__name__
        check_number(f"{owner}.strength", strength, low=0)
        check_number(f"{owner}.momentum", momentum, low=0, below=1)
        check_number(f"{owner}.rate", rate, above=0)
        self.strength = strength
        self.momentum = momentum
        self.rate = rate

    def start(self, gates: Gates) -> None:
        return None

    def value(self, gates: Gates) -> Tensor:
        return self.strength * total(factor.abs() for factor in gates.factor.values())

    def loss(self, gates: Gates) -> Tensor | None:
        return None

    def after_step(self, gates: Gates, step: Step) -> None:
        rate = self.rate * step.rate
        for name, factor in gates.factor.items():
            # The optimizer has moved the scales too: they go on from where they were.
            scale, velocity = gates.before[name], gates.velocity[name]
            gradient = factor.grad if factor.grad is not None else 0.0
            z = soft(scale - rate * gradient, rate * self.strength)
            velocity.mul_(self.momentum).add_(z - scale)
            factor.copy_((z + self.momentum * velocity).clamp_min(0))
