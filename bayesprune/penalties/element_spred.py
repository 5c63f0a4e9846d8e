"""The lasso on single weights by a redundant factorisation."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bayesprune._checks import check_number
from bayesprune.batches import Loader
from bayesprune.groups import ChannelGroups
from bayesprune.penalties._penalty import Penalty, Task, total
from bayesprune.penalties._weights import multiplied, scored
from bayesprune.training import Step


class ElementSpred(Penalty):
    r"""Each weight becomes a product :math:`u v` with the ridge :math:`\frac\lambda2 (u^2 + v^2)`.

    Its minimum over all factors of the same weight is :math:`\lambda |w|`: lasso for any optimizer.
    Zeros are approached but not reached; `mask_weights` removes what is small.

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
    Ziyin and Wang, "spred: Solving L1 penalty with SGD", ICML 2023.
    """

    reference = "Ziyin & Wang, ICML 2023"

    def __init__(self, strength: float = 1e-5) -> None:
        check_number(f"{type(self).__name__}.strength", strength, low=0)
        self.strength = strength

    def task(self, network: nn.Module, groups: ChannelGroups, loader: Loader) -> Task:
        return _Factors(self, network, groups)


class _Factors(Task):
    def __init__(self, method: ElementSpred, network: nn.Module, groups: ChannelGroups) -> None:
        super().__init__(method)
        self.network = network
        self._strength, self._groups = method.strength, groups
        self._first = multiplied(network, groups)
        self._second: dict[str, nn.Parameter] = {}
        with torch.no_grad():
            for name, weight in self._first.items():
                root = weight.abs().sqrt()
                self._second[name] = nn.Parameter(root.clone())
                self.register_parameter(f"factor {name}".replace(".", "/"), self._second[name])
                weight.copy_(weight.sign() * root)

    def _weights(self) -> dict[str, Tensor]:
        return {name: weight * self._second[name] for name, weight in self._first.items()}

    def forward(self, *inputs: Tensor) -> Any:
        return functional_call(self.network, self._weights(), inputs)

    def value(self) -> Tensor:
        factors = [*self._first.values(), *self._second.values()]
        return self._strength / 2 * total(factor.square() for factor in factors)

    def penalty(self) -> Tensor:
        return self.value()

    def after_step(self, step: Step) -> None:
        return None

    @torch.no_grad()
    def measure(self) -> dict[str, Any]:
        left = sum(int(weight.count_nonzero()) for weight in self._weights().values())
        return {"penalty": self.value().item(), "weights": left}

    @property
    def undecayed(self) -> Collection[nn.Parameter]:
        return [*self._first.values(), *self._second.values()]

    @torch.no_grad()
    def result(self) -> tuple[nn.Module, dict[str, Tensor]]:
        for name, weight in self._weights().items():
            self._first[name].copy_(weight)
        return scored(self.network, self._groups)
