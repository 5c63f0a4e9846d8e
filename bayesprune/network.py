"""A network with switches: Pyro model, guide, and the way back to a plain network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Self

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn.module import PyroModule
from torch import Tensor, nn

from bayesprune.errors import ConfigError, PlanError
from bayesprune.gating import GatedNetwork
from bayesprune.groups import ChannelGroup, ChannelGroups, tensors_in
from bayesprune.switches import Site, Switch
from bayesprune.weights import GaussianWeights, take_means

Likelihood = Callable[[Any], TorchDistributionMixin]


def categorical(output: Tensor) -> TorchDistributionMixin:
    """The likelihood of a classifier: class probabilities from logits of shape ``(N, K)``."""
    if not isinstance(output, Tensor):
        raise ConfigError(
            f"likelihood: expected logits from the network, got a {type(output).__name__}: give "
            "SwitchedNetwork likelihood=... for such a network"
        )
    return dist.Categorical(logits=output)


class SwitchGuide(PyroModule):
    """The variational distribution of a switched network: of switches, and of weights if any."""

    def __init__(self, switches: Mapping[str, Switch]) -> None:
        super().__init__()
        self.weight_sites: Callable[[], Iterable[tuple[str, Site]]] = tuple
        self.names = list(switches)
        self.switches: Any = PyroModule[nn.ModuleList](list(switches.values()))  # type: ignore[index]
        self.active = set(self.names)
        self.kl_weights = dict.fromkeys(self.names, 1.0)
        self.kl_weight = 1.0

    def items(self) -> Iterator[tuple[str, Switch]]:
        """The active groups' names and switches."""
        for name, switch in zip(self.names, self.switches, strict=True):
            if name in self.active:
                yield name, switch

    def forward(self, inputs: Any = None, targets: Any = None) -> dict[str, Tensor]:
        """Sample every site from its factor; returns the gates."""
        return self.run(lambda site: site.factor)

    def run(self, choose: Callable[[Any], TorchDistributionMixin]) -> dict[str, Tensor]:
        """Sample every site from what `choose` takes of it; returns the gates by group."""
        gates = {}
        for name, switch in self.items():
            values = {}
            for site_name, site in switch.sites().items():
                # The analytic divergence takes its scale from the site, in the model and here.
                with poutine.scale(scale=self.kl_weight * self.kl_weights[name]):
                    values[site_name] = pyro.sample(f"{name}.{site_name}", choose(site))
            gates[name] = switch.gate(values)
        for name, site in self.weight_sites():
            # Layers draw what they put out, so the value is not used; the divergence is.
            with poutine.scale(scale=self.kl_weight):
                pyro.sample(name, choose(site))
        return gates


def _weights(weight: float | Mapping[str, float], names: Iterable[str]) -> dict[str, float]:
    """The weight of each group's divergence."""
    names = list(names)
    weights = dict(weight) if isinstance(weight, Mapping) else dict.fromkeys(names, weight)
    unknown = set(weights) - set(names)
    if unknown:
        raise ConfigError(f"kl_weight: unknown groups {', '.join(sorted(unknown))}")
    for name, value in weights.items():
        if not 0 < value < math.inf:
            raise ConfigError(f"kl_weight: expected a number above 0, got {value!r} ({name})")
    return {name: float(weights.get(name, 1.0)) for name in names}


def _fan_in(group: ChannelGroup, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """The number of weights that produce a unit."""
    count = 0.0
    for slice_ in group.slices:
        shape = shapes[slice_.tensor]
        if slice_.role == "producer" and len(shape) > 1:
            entries = int((slice_.units >= 0).sum())
            count += math.prod(shape) / shape[slice_.axis] * entries / group.size
    return max(1.0, count)


def _kept(name: str, size: int, keep: float | Mapping[str, float] | None) -> float | None:
    """The number of channels that `keep` leaves of a group."""
    if keep is None:
        return None
    if isinstance(keep, Mapping):
        if name not in keep:
            raise ConfigError(f"keep: no number of channels for group {name}")
        count = keep[name]
    else:
        count = keep * size
    if not 0 < count <= size:
        raise ConfigError(f"keep: group {name} has {size} channels, asked to keep {count}")
    return float(count)


class SwitchedNetwork(PyroModule):
    """A copy of a network whose channels pass through switches, as a Pyro model with its guide.

    ``TraceMeanField_ELBO()(switched, switched.guide)`` is the loss of stochastic variational
    inference; `fit_switches` minimises it, without Pyro's bookkeeping (`svi.negative_elbo`).

    Parameters
    ----------
    network : nn.Module
        Copied, never modified.
    groups : ChannelGroups
        From `trace_groups` of the same network.
    switch : Switch or mapping of str to Switch
        A prototype for all groups, or one per group; groups without one have no gate.
    num_data : int
        Size of the training set: the likelihood of a batch of B counts ``num_data / B`` times.
    keep : float or mapping of str to number, optional
        Channels to keep, for switches that make use of it: a fraction of every group, or a number
        per group.
    train_weights : bool
        Whether the weights are trained along with the switches. If not, they are frozen and the
        copy stays in evaluation mode.
    weight_posterior : GaussianWeights, optional
        Trains the weights as means of a posterior.
    kl_weight : float or mapping of str to float
        Weight of the divergence of all groups, or of the groups named and 1 for the others; above
        0. Other than 1, the posterior is a generalised (tempered) one.
    likelihood : callable
        From the network's output to the distribution of the targets, with batch shape ``(N,)``.

    Raises
    ------
    PlanError
        If a group does not fit the network.
    ConfigError
        If `keep`, `kl_weight` or `num_data` is out of range, or Pyro keeps its parameters globally.

    Examples
    --------
    >>> import torch
    >>> import bayesprune as bp
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> groups = bp.trace_groups(network, torch.zeros(1, 4))
    >>> prior = bp.switches.Dirichlet(concentration=0.1)
    >>> switched = bp.SwitchedNetwork(network, groups, prior, num_data=100)
    >>> switched(torch.zeros(2, 4)).shape
    torch.Size([2, 3])
    >>> plain = switched.fold({"0": torch.zeros(6)})  # all gates shut
    >>> torch.equal(plain(torch.ones(1, 4))[0], network[2].bias)
    True
    """

    def __init__(
        self,
        network: nn.Module,
        groups: ChannelGroups,
        switch: Switch | Mapping[str, Switch],
        *,
        num_data: int,
        keep: float | Mapping[str, float] | None = None,
        train_weights: bool = False,
        weight_posterior: GaussianWeights | None = None,
        kl_weight: float | Mapping[str, float] = 1.0,
        likelihood: Likelihood = categorical,
    ) -> None:
        if not pyro.settings.get("module_local_params"):
            raise ConfigError(
                "Pyro's global parameter store is on. bayesprune switches it off when imported; "
                "leave pyro.settings module_local_params=True"
            )
        super().__init__()
        if num_data < 1:
            raise ConfigError(f"num_data: expected the size of the training set, got {num_data}")
        self.num_data = num_data
        self.train_weights = train_weights
        self.weight_posterior = weight_posterior
        self.penalty: Any = None  # of a cost constraint, while switches are fitted
        self.likelihood = likelihood
        sizes = groups.sizes

        prototypes = dict.fromkeys(groups, switch) if isinstance(switch, Switch) else switch
        if not isinstance(prototypes, Mapping) or not all(
            isinstance(prototype, Switch) for prototype in prototypes.values()
        ):
            raise ConfigError(
                "switch: expected a Switch like Dirichlet(), or a mapping of group names to such, "
                f"got {switch!r}"
            )
        unknown = set(prototypes) - set(groups)
        if unknown:
            raise PlanError(f"switches for unknown groups: {', '.join(sorted(unknown))}")
        bound = {}
        for name in groups:
            if name in prototypes:
                kept = _kept(name, sizes[name], keep)
                fan_in = _fan_in(groups[name], groups.shapes)
                bound[name] = prototypes[name].bind(sizes[name], kept, fan_in)
        self.groups = groups
        self.network = GatedNetwork(network, groups, bound)
        self.guide = SwitchGuide(bound)
        if weight_posterior is not None:
            if not train_weights:
                raise ConfigError("weight_posterior needs train_weights=True")
            weight_posterior.attach(self.network.network)
            self.guide.weight_sites = partial(weight_posterior.sites, self.network)
        self.guide.kl_weights = _weights(kl_weight, bound)
        self.guide.to(next(network.parameters()).device)
        self.network.requires_grad_(train_weights)
        self.train(network.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if not self.train_weights:
            self.network.eval()
        return self

    def forward(self, inputs: Any, targets: Tensor | None = None) -> Any:
        """The Pyro model: gates from the prior, outputs, and the likelihood of `targets`."""
        gates = self.guide.run(lambda site: site.prior)
        output = self.network(inputs, gates)
        likelihood = self._likelihood(output)
        batch = torch.arange(*likelihood.batch_shape, device=tensors_in(output)[0].device)
        with pyro.plate("data", self.num_data, subsample=batch):
            pyro.sample("targets", likelihood, obs=targets)
        return output

    def log_likelihood(
        self, inputs: Any, targets: Tensor, gates: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The log likelihood of each example's target, in nats, shape ``(N,)``.

        Parameters
        ----------
        inputs : Tensor or tuple
        targets : Tensor
            Shape ``(N, ...)``.
        gates : mapping of str to Tensor
            Shape ``(C,)``, or ``(N, C)`` for gates per example; a group without one is not gated.

        Raises
        ------
        ConfigError
            If the likelihood is not one distribution per example, or not of such targets.
        ValueError
            If the distribution has no such targets.
        """
        likelihood = self._likelihood(self.network(inputs, gates))
        likelihood._validate_sample(targets)  # also where Pyro's validation is off
        density = likelihood.log_prob(targets)
        if density.shape != targets.shape[:1]:
            raise ConfigError(
                f"likelihood: expected a log density per example, shape {tuple(targets.shape[:1])},"
                f" got shape {tuple(density.shape)} for targets of shape {tuple(targets.shape)}"
            )
        return density

    def _likelihood(self, output: Any) -> Any:
        likelihood = self.likelihood(output)
        if len(likelihood.batch_shape) != 1:
            raise ConfigError(
                "likelihood: expected one distribution per example, batch shape (N,), got batch "
                f"shape {tuple(likelihood.batch_shape)}; .to_event(...) joins dimensions"
            )
        return likelihood

    def fold(self, gates: Mapping[str, Tensor]) -> nn.Module:
        """A plain, trainable network with the original module names and the gates in its weights.

        Parameters
        ----------
        gates : mapping of str to Tensor
            One gate per unit, shape ``(C,)``: `SwitchPosterior.mean`, or a mask of zeros and ones.

        Raises
        ------
        PlanError
            If a group is unknown or its gates have another shape.
        """
        plain = self.network.fold(gates)
        take_means(plain)
        return plain.requires_grad_(True)
