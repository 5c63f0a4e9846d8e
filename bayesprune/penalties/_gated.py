"""Penalties on factors of each unit: gates that are trained along with the network."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from typing import Any, cast

import torch
from torch import Tensor, nn

from bayesprune.batches import Loader
from bayesprune.gating import GatedNetwork
from bayesprune.groups import ChannelGroups
from bayesprune.penalties._penalty import Penalty, Task
from bayesprune.penalties._units import Units
from bayesprune.training import Step


class GatePenalty(Penalty):
    """Abstract: multiplies each unit, where it is read, by gates that are trained and folded."""

    @abstractmethod
    def start(self, gates: Gates) -> None:
        """Set the factors, and the weights behind them, before the first step."""

    @abstractmethod
    def value(self, gates: Gates) -> Tensor:
        """The penalty, a differentiable scalar."""

    @abstractmethod
    def loss(self, gates: Gates) -> Tensor | None:
        """What is added to the loss of each batch."""

    def after_step(self, gates: Gates, step: Step) -> None:
        """Change the factors after a step of the optimizer."""
        return None

    factors: int = 1
    """How many factors a gate is the product of."""

    def task(self, network: nn.Module, groups: ChannelGroups, loader: Loader) -> Task:
        return Gates(self, network, groups)


class Gates(Task):
    """A network with a gate on each unit.

    Attributes
    ----------
    factor : dict of str to Parameter
        Shape ``(factors, C)`` per group; the product over the first axis is the gate.
    velocity, before : dict of str to Tensor
        Of the same shape, for methods that take steps of their own.
    """

    def __init__(self, method: GatePenalty, network: nn.Module, groups: ChannelGroups) -> None:
        super().__init__(method)
        self._method, self._groups = method, groups
        self.gated = GatedNetwork(network, groups)
        like = next(network.parameters()).detach()
        self.factor: dict[str, nn.Parameter] = {}
        self.velocity: dict[str, Tensor] = {}
        self.before: dict[str, Tensor] = {}
        self._columns: dict[str, list[tuple[nn.Parameter, int, Tensor, Tensor]]] = {}
        for name, group in groups.items():
            ones = like.new_ones(method.factors, group.size)
            self.factor[name] = nn.Parameter(ones)
            self.velocity[name], self.before[name] = torch.zeros_like(ones), ones.clone()
            key = name.replace(".", "/")
            self.register_parameter(f"factor {key}", self.factor[name])
            self.register_buffer(f"velocity {key}", self.velocity[name])
            self.register_buffer(f"before {key}", self.before[name])
            self._columns[name] = []
            for slice_ in group.slices:
                if slice_.role == "consumer":
                    weight = cast(
                        nn.Parameter, self.gated.network.get_submodule(slice_.module).weight
                    )
                    rows = (slice_.units >= 0).nonzero()[:, 0].to(like.device)
                    entry = (weight, slice_.axis, rows, slice_.units.to(like.device)[rows])
                    self._columns[name].append(entry)
        with torch.no_grad():
            method.start(self)
            for name, factor in self.factor.items():
                self.before[name].copy_(factor)

    def gates(self) -> dict[str, Tensor]:
        """The gate of each unit, shape ``(C,)``."""
        return {name: factor.prod(0) for name, factor in self.factor.items()}

    def squares(self) -> dict[str, Tensor]:
        """The squared norm of what reads each unit, without its gate, shape ``(C,)``."""
        read = {}
        for name, columns in self._columns.items():
            squares = torch.zeros_like(self.velocity[name][0])
            for weight, axis, rows, units in columns:
                values = weight.movedim(axis, 0)[rows].flatten(1).square().sum(1)
                squares = squares.index_add(0, units, values)
            read[name] = squares
        return read

    @property
    def readers(self) -> list[nn.Parameter]:
        """The weights that read units, each once."""
        columns = (column for columns in self._columns.values() for column in columns)
        return list(dict.fromkeys(weight for weight, *_ in columns))

    @torch.no_grad()
    def divide_(self, name: str, gates: Tensor) -> None:
        """Divide the weights that read a group's units by gates above 0, shape ``(C,)``."""
        for weight, axis, rows, units in self._columns[name]:
            moved = weight.movedim(axis, 0)
            moved[rows] = moved[rows] / gates[units].reshape(-1, *(1,) * (moved.ndim - 1))

    def forward(self, *inputs: Tensor) -> Any:
        return self.gated(inputs, self.gates())

    def value(self) -> Tensor:
        return self._method.value(self)

    def penalty(self) -> Tensor | None:
        return self._method.loss(self)

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        self._method.after_step(self, step)
        for name, factor in self.factor.items():
            self.before[name].copy_(factor)

    @torch.no_grad()
    def measure(self) -> dict[str, Any]:
        alive = sum(int((gate != 0).sum()) for gate in self.gates().values())
        return {"penalty": self.value().item(), "units": alive}

    @property
    def undecayed(self) -> Collection[nn.Parameter]:
        return [*self.factor.values(), *self.readers]

    @torch.no_grad()
    def result(self) -> tuple[nn.Module, dict[str, Tensor]]:
        gates = {name: gate.detach() for name, gate in self.gates().items()}
        read = self.squares()
        scores = {name: gate.abs() * read[name].sqrt() for name, gate in gates.items()}
        network = self.gated.fold(gates)
        dead = {name: values == 0 for name, values in scores.items()}
        Units(network, self._groups).bury_(dead)
        return network, scores
