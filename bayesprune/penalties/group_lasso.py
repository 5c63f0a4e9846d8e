"""Group lasso."""

from __future__ import annotations

from torch import Tensor

from bayesprune.penalties._penalty import GroupProximalPenalty, State
from bayesprune.penalties._units import Scale, Units


class GroupLasso(GroupProximalPenalty):
    r"""The sum of the norms of the units: :math:`\lambda \sum_g m_g \|w_g\|_2`.

    Its proximal operator multiplies a unit by :math:`\max(0, 1 - \eta\lambda m_g / \|w_g\|)`. A
    unit is a filter together with what reads it, so this is structured sparsity learning over both.

    Parameters
    ----------
    strength : float
        :math:`\lambda`, at least 0.
    scale : {"size", "macs", "none"}
        :math:`m_g`: the square root of the unit's number of weights, its multiply-accumulates
        relative to their mean, or 1.
    threshold : float
        Norm below which a unit is removed at the beginning of retraining, or after training.
    retrain : float
        Share of the steps, in [0, 1), in which it is fixed which units stay; their penalty goes on.

    Raises
    ------
    ConfigError
        If a value is out of range.

    References
    ----------
    Yuan and Lin, JRSS B 2006; Wen et al., "Learning structured sparsity in deep neural networks",
    NeurIPS 2016.

    Examples
    --------
    >>> import torch
    >>> import bayesprune as bp
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> groups = bp.trace_groups(network, torch.zeros(1, 4))
    >>> loader = [(torch.randn(32, 4), torch.arange(32) % 3)]
    >>> penalty = bp.penalties.GroupLasso(strength=100.0)  # so strong that no unit is left
    >>> penalty.fit(network, groups, loader, epochs=40, progress=False).values["0"].max()
    tensor(0.)
    """

    reference = "Yuan & Lin, 2006; Wen et al., NeurIPS 2016"

    def __init__(
        self,
        strength: float = 1e-4,
        scale: Scale = "size",
        threshold: float = 0.0,
        retrain: float = 0.0,
    ) -> None:
        super().__init__(strength, scale, threshold, retrain)

    def value(self, units: Units, state: State) -> Tensor:
        return self.group_norm(units)

    def prox(self, units: Units, rate: float) -> None:
        self.shrink(units, rate)
