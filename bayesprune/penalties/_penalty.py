"""What all penalties share: sparse training of a copy, and scores of its units."""

from __future__ import annotations

import copy
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bayesprune._checks import check_choice, check_number
from bayesprune._describe import describe
from bayesprune.batches import Loader
from bayesprune.errors import ConfigError
from bayesprune.groups import ChannelGroups
from bayesprune.penalties._prox import group_soft_factors
from bayesprune.penalties._units import Extent, Scale, Units
from bayesprune.selection import ChannelScores
from bayesprune.training import MetricsWriter, Row, Step, TrainConfig, make_fabric, train_network

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class SparseFit:
    """What sparse training leaves.

    Attributes
    ----------
    network : nn.Module
        The trained copy, of the same class and with the same module names as the network. All that
        belongs to units of score 0 is 0 in it, so that removing them changes nothing.
    scores : ChannelScores
        Of its units.
    history : list of dict
        One row per epoch, see `train_network`, with the ``penalty`` after the epoch and the number
        of ``units`` whose score is not 0.
    """

    network: nn.Module
    scores: ChannelScores
    history: list[Row]


class Task(nn.Module, ABC):
    """Abstract: what is trained, a `bayesprune.training.Regulariser` with all of its state."""

    def __init__(self, penalty: Penalty) -> None:
        super().__init__()
        self._settings = {"penalty": describe(penalty)}

    @property
    def settings(self) -> Mapping[str, Any]:
        """What a checkpoint must agree with."""
        return self._settings

    @abstractmethod
    def forward(self, *inputs: Tensor) -> Any:
        """The network's output on as many inputs as it takes."""

    @abstractmethod
    def value(self) -> Tensor:
        """The penalty, a differentiable scalar."""

    @abstractmethod
    def penalty(self) -> Tensor | None:
        """What is added to the loss: the penalty, unless a step of its own takes care of it."""

    @abstractmethod
    def after_step(self, step: Step) -> None:
        """What happens after a step of the optimizer."""

    @abstractmethod
    def measure(self) -> dict[str, Any]:
        """Columns of an epoch's row."""

    @property
    @abstractmethod
    def undecayed(self) -> Collection[nn.Parameter]:
        """Parameters that weight decay leaves alone."""

    @abstractmethod
    def result(self) -> tuple[nn.Module, dict[str, Tensor]]:
        """The trained network and the scores of its units; called once."""


class Penalty(ABC):
    """Abstract: finds channels to remove by training the network so that it needs few."""

    reference: str

    @abstractmethod
    def task(self, network: nn.Module, groups: ChannelGroups, loader: Loader) -> Task:
        """What to train; `network` is a copy on its device that may be changed."""

    def train(
        self,
        network: nn.Module,
        groups: ChannelGroups,
        loader: Loader,
        config: TrainConfig,
        *,
        fabric: Fabric | None = None,
        seed: int = 0,
        stage: str = "fit",
        validation: Loader | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        metrics: MetricsWriter | None = None,
        progress: bool = True,
    ) -> SparseFit:
        """Train a copy of a network sparsely.

        Parameters
        ----------
        network : nn.Module
            Maps inputs ``(N, …)`` to logits ``(N, classes)``. Left untouched.
        groups : ChannelGroups
            From `trace_groups` of the same network.
        loader : DataLoader
            Batches of inputs and integer labels ``(N,)``; several inputs come as a tuple.
        config : TrainConfig
            How to train. Weight decay spares what the penalty shrinks.
        fabric, seed, stage, validation, checkpoint, metrics, progress
            As in `train_network`.

        Returns
        -------
        SparseFit

        Raises
        ------
        ConfigError
            If `config` averages weights, which leaves no zeros, or distils.
        PlanError
            If the groups do not fit the network.
        DataError, FitError, CheckpointError
            As in `bayesprune.training.run_epochs`.
        """
        for name in ("average", "distill"):
            if getattr(config, name) is not None:
                raise ConfigError(f"{name}: expected None in sparse training")
        launched = fabric or make_fabric()
        groups.check(network)
        task = self.task(launched.to_device(copy.deepcopy(network)), groups, loader)
        _, history = train_network(
            task,
            loader,
            config,
            regulariser=task,
            fabric=launched,
            seed=seed,
            stage=stage,
            validation=validation,
            checkpoint=checkpoint,
            metrics=metrics,
            progress=progress,
        )
        trained, values = task.result()
        scores = {name: value.detach().cpu() for name, value in values.items()}
        return SparseFit(trained, ChannelScores(scores, type(self).__name__), history)

    def fit(
        self,
        network: nn.Module,
        groups: ChannelGroups,
        loader: Loader,
        epochs: int = 10,
        **options: Any,
    ) -> ChannelScores:
        """Scores of the units after `train` with Adam at a constant learning rate of 1e-3.

        Parameters
        ----------
        network, groups, loader
            As in `train`.
        epochs : int
        **options
            Keyword arguments of `train`.

        Returns
        -------
        ChannelScores
            Higher = keep, shape ``(C,)`` per group.
        """
        config = TrainConfig(epochs=epochs, schedule="constant")
        return self.train(network, groups, loader, config, **options).scores


State = dict[str, Tensor]
"""Tensors that a method carries from step to step, changed in place."""


class UnitPenalty(Penalty):
    """Abstract: a penalty on the vectors of a network's units.

    Attributes
    ----------
    scale : {"size", "macs", "none"}
        See `Scale`.
    extent : {"joint", "filter"}
        See `Extent`.
    """

    scale: Scale = "none"
    extent: Extent = "joint"

    @abstractmethod
    def value(self, units: Units, state: State) -> Tensor:
        """The penalty, a differentiable scalar."""

    def start(self, units: Units) -> State:
        """The state before the first step."""
        return {}

    def loss(self, units: Units, state: State) -> Tensor | None:
        """What is added to the loss of each batch; None for nothing."""
        return self.value(units, state)

    def after_step(self, units: Units, state: State, step: Step) -> None:
        """Change the vectors or the state after a step of the optimizer."""
        return None

    def scores(self, units: Units, state: State) -> dict[str, Tensor]:
        """Scores of the trained units: the norms of their vectors."""
        return units.norms()

    def shrunk(self, units: Units) -> list[nn.Parameter]:
        """The parameters that the penalty shrinks, which weight decay spares."""
        return units.parameters

    def task(self, network: nn.Module, groups: ChannelGroups, loader: Loader) -> Task:
        return _UnitTask(self, network, Units(network, groups, self.scale, self.extent))


class _UnitTask(Task):
    def __init__(self, method: UnitPenalty, network: nn.Module, units: Units) -> None:
        super().__init__(method)
        self.network = network
        self._method, self._units = method, units
        with torch.no_grad():
            self._state = method.start(units)
        for name, tensor in self._state.items():
            self.register_buffer(f"state {name}".replace(".", "/"), tensor)

    def forward(self, *inputs: Tensor) -> Any:
        return self.network(*inputs)

    def value(self) -> Tensor:
        return self._method.value(self._units, self._state)

    def penalty(self) -> Tensor | None:
        return self._method.loss(self._units, self._state)

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        self._method.after_step(self._units, self._state, step)

    @torch.no_grad()
    def measure(self) -> dict[str, Any]:
        scores = self._method.scores(self._units, self._state)
        alive = sum(int((values > 0).sum()) for values in scores.values())
        return {"penalty": self.value().item(), "units": alive}

    @property
    def undecayed(self) -> Collection[nn.Parameter]:
        return self._method.shrunk(self._units)

    @torch.no_grad()
    def result(self) -> tuple[nn.Module, dict[str, Tensor]]:
        scores = self._method.scores(self._units, self._state)
        self._units.bury_({name: values == 0 for name, values in scores.items()})
        return self.network, scores


class ProximalPenalty(UnitPenalty):
    """Abstract: a penalty whose proximal operator follows each step of the optimizer.

    The loss stays that of the data; the operator, at the step's learning rate, gives exact zeros.
    With Adam the rate is that of the group, not of each weight.

    Where units share weights (what one layer writes the next one reads) the operators of the groups
    follow one another, since that of their sum has no closed form.
    """

    @abstractmethod
    def prox(self, units: Units, rate: float) -> None:
        """Replace the vectors v by the minimiser of ``|x - v|²/2 + rate * value(x)``, in place."""

    def loss(self, units: Units, state: State) -> Tensor | None:
        return None

    def after_step(self, units: Units, state: State, step: Step) -> None:
        self.prox(units, step.rate)


class GroupProximalPenalty(ProximalPenalty):
    """Abstract: shrinks whole vectors, and may fix at some point which of them are left.

    In the last `retrain` of the steps, units whose norm was below `threshold` at their beginning
    stay 0, and the others are trained on. Without it the threshold applies after the last step.

    Parameters
    ----------
    strength : float
        At least 0.
    scale : {"size", "macs", "none"}
        See `Scale`.
    threshold : float
        At least 0.
    retrain : float
        In [0, 1).

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    def __init__(self, strength: float, scale: Scale, threshold: float, retrain: float) -> None:
        owner = type(self).__name__
        check_number(f"{owner}.strength", strength, low=0)
        check_number(f"{owner}.threshold", threshold, low=0)
        check_number(f"{owner}.retrain", retrain, low=0, below=1)
        check_choice(f"{owner}.scale", scale, Scale)
        self.strength = strength
        self.scale = scale
        self.threshold = threshold
        self.retrain = retrain

    def start(self, units: Units) -> State:
        return {name: torch.ones_like(norms) for name, norms in units.norms().items()}

    def after_step(self, units: Units, state: State, step: Step) -> None:
        selecting = max(1, round((1 - self.retrain) * step.total))
        if step.index < selecting:
            self.prox(units, step.rate)
        else:
            self.retrain_step(units, step.rate)
        if step.index == selecting - 1:
            for name, norms in units.norms().items():
                state[name].copy_((norms >= self.threshold) & (norms > 0))
        if step.index >= selecting - 1:
            for name, group in units.items():
                group.scale_(state[name])

    def retrain_step(self, units: Units, rate: float) -> None:
        """What follows a step of the optimizer once it is fixed which units stay."""
        self.prox(units, rate)

    def shrink(self, units: Units, rate: float, ridge: float = 0.0) -> None:
        """The operator of ``strength * multiplier * norm + ridge * norm²``, group by group."""
        for name, group in units.items():
            level = rate * self.strength * units.multipliers[name]
            factors = group_soft_factors(group.norms(), level) / (1 + 2 * rate * ridge)
            group.scale_(factors)

    def group_norm(self, units: Units) -> Tensor:
        """``strength`` times the sum over all units of multiplier times norm."""
        return self.strength * total(
            units.multipliers[n] * group.norms() for n, group in units.items()
        )


def total(values: Any) -> Tensor:
    """The sum over all entries of some tensors."""
    return torch.stack([value.sum() for value in values]).sum()


def best(norms: Tensor, keep: float) -> Tensor:
    """Ones for the `keep` share (rounded up) of largest norms and zeros, shape ``(C,)``."""
    count = math.ceil(keep * len(norms) - 1e-9)
    chosen = torch.argsort(norms, descending=True, stable=True)[:count]
    return torch.zeros_like(norms).index_fill(0, chosen, 1.0)
