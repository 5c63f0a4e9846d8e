"""Penalties on single weights, and masks that remove them."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Collection
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from bayesprune._checks import check_number
from bayesprune.batches import Loader
from bayesprune.errors import ConfigError
from bayesprune.groups import ChannelGroups
from bayesprune.penalties._penalty import Penalty, State, Task
from bayesprune.penalties._units import Units
from bayesprune.training import Step


class WeightPenalty(Penalty):
    """Abstract: a penalty on the single weights of convolutions and linear layers.

    The scores are the norms of the units of the trained network; `mask_weights` removes weights.
    """

    @abstractmethod
    def value(self, weights: dict[str, nn.Parameter]) -> Tensor:
        """The penalty, a differentiable scalar."""

    def start(self, network: nn.Module, weights: dict[str, nn.Parameter], loader: Loader) -> State:
        """The state before the first step."""
        return {}

    def loss(self, weights: dict[str, nn.Parameter]) -> Tensor | None:
        """What is added to the loss of each batch; None for nothing."""
        return self.value(weights)

    def after_step(self, weights: dict[str, nn.Parameter], state: State, step: Step) -> None:
        """Change the weights after a step of the optimizer."""
        return None

    def task(self, network: nn.Module, groups: ChannelGroups, loader: Loader) -> Task:
        return _WeightTask(self, network, groups, loader)


def multiplied(network: nn.Module, groups: ChannelGroups) -> dict[str, nn.Parameter]:
    """The weights that a network multiplies by, by name, first layers first."""
    names = [use.tensor for use in groups.uses if len(groups.shapes[use.tensor]) > 1]
    return {name: network.get_parameter(name) for name in dict.fromkeys(names)}


def scored(network: nn.Module, groups: ChannelGroups) -> tuple[nn.Module, dict[str, Tensor]]:
    """The network without what is left of units of norm 0, and the norms of all units."""
    units = Units(network, groups)
    scores = units.norms()
    units.bury_({name: values == 0 for name, values in scores.items()})
    return network, scores


class _WeightTask(Task):
    def __init__(
        self, method: WeightPenalty, network: nn.Module, groups: ChannelGroups, loader: Loader
    ) -> None:
        super().__init__(method)
        self.network = network
        self._method, self._groups = method, groups
        self._weights = multiplied(network, groups)
        self._state = method.start(network, self._weights, loader)
        for name, tensor in self._state.items():
            self.register_buffer(f"state {name}".replace(".", "/"), tensor)

    def forward(self, *inputs: Tensor) -> Any:
        return self.network(*inputs)

    def value(self) -> Tensor:
        return self._method.value(self._weights)

    def penalty(self) -> Tensor | None:
        return self._method.loss(self._weights)

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        self._method.after_step(self._weights, self._state, step)

    @torch.no_grad()
    def measure(self) -> dict[str, Any]:
        left = sum(int(weight.count_nonzero()) for weight in self._weights.values())
        return {"penalty": self.value().item(), "weights": left}

    @property
    def undecayed(self) -> Collection[nn.Parameter]:
        return list(self._weights.values())

    @torch.no_grad()
    def result(self) -> tuple[nn.Module, dict[str, Tensor]]:
        return scored(self.network, self._groups)


def mask_weights(network: nn.Module, multiple: float) -> nn.Module:
    """Return a copy whose small weights are masked by `torch.nn.utils.prune`.

    In each convolution and linear layer, weights of absolute value below `multiple` standard
    deviations of the layer's weights, and those that are 0, stay 0 in further training.

    Parameters
    ----------
    network : nn.Module
        Left untouched.
    multiple : float
        At least 0.

    Returns
    -------
    nn.Module
        With ``weight_orig`` and ``weight_mask`` in place of each ``weight``;
        ``torch.nn.utils.prune.remove`` makes the masks final.

    Raises
    ------
    ConfigError
        If the multiple is out of range.
    """
    check_number("mask_weights.multiple", multiple, low=0)
    network = copy.deepcopy(network)
    for module in _layers(network).values():
        weight = module.weight.detach()
        small = weight.abs() < multiple * weight.std(correction=0)
        prune.custom_from_mask(module, "weight", ~small & (weight != 0))
    return network


def remaining_weights(network: nn.Module) -> pd.DataFrame:
    """Count the weights of each convolution and linear layer that are not 0.

    Returns
    -------
    DataFrame
        Columns ``layer``, ``remaining``, ``of`` and ``share``, a row per layer and one, ``total``,
        for all of them.

    Raises
    ------
    ConfigError
        If there is no such layer.
    """
    counts = [
        (name, int(module.weight.count_nonzero()), module.weight.numel())
        for name, module in _layers(network).items()
    ]
    if not counts:
        raise ConfigError("remaining_weights: expected convolutions or linear layers, got none")
    counts.append(("total", sum(row[1] for row in counts), sum(row[2] for row in counts)))
    frame = pd.DataFrame(counts, columns=["layer", "remaining", "of"])
    return frame.assign(share=frame["remaining"] / frame["of"])


def _layers(network: nn.Module) -> dict[str, Any]:
    kinds = nn.Linear | nn.modules.conv._ConvNd
    return {name: module for name, module in network.named_modules() if isinstance(module, kinds)}
