"""Toys with exact posteriors: networks whose output is the gates themselves."""

import math
from types import SimpleNamespace

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.nn.module import PyroParam
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bayesprune as bp
from bayesprune.switches import Dirichlet, Switch
from bayesprune.switches._switch import Site
from bayesprune.training import make_fabric


class Gaussian(Switch):
    """Gates N(0, 1) a priori, with a Gaussian factor."""

    reference = "a toy"

    def initialise(self, keep):
        self.loc = PyroParam(torch.zeros(self.size))
        self.scale = PyroParam(torch.full((self.size,), 0.5), constraints.softplus_positive)

    def sites(self):
        prior = dist.Normal(torch.zeros_like(self.loc), 1.0).to_event(1)
        return {"gate": Site(prior, dist.Normal(self.loc, self.scale).to_event(1))}

    def gate(self, values):
        return values["gate"]

    def mean(self):
        return self.loc.detach()

    def sd(self):
        return self.scale.detach()

    def quantile(self, q):
        return dist.Normal(self.loc, self.scale).icdf(torch.tensor(q)).detach()


def mirror(channels):
    """A network that puts out its gates, whatever comes in."""
    network = nn.Sequential(nn.Linear(1, channels), nn.ReLU(), nn.Linear(channels, channels))
    with torch.no_grad():
        for layer, weight, bias in ((network[0], 0.0, 1.0), (network[2], torch.eye(channels), 0.0)):
            layer.weight.copy_(torch.as_tensor(weight))
            layer.bias.fill_(bias)
    return network


class Toy:
    """A model, data from it, and the posterior that is exactly in the guide's family."""

    channels = 3
    examples = 200

    def __init__(self):
        self.network = mirror(self.channels)
        self.groups = bp.trace_groups(self.network, torch.zeros(1, 1))
        self.fabric = make_fabric()

    def switched(self, num_data=None):
        return bp.SwitchedNetwork(
            self.network,
            self.groups,
            self.prototype,
            num_data=num_data or self.examples,
            likelihood=self.likelihood,
        )

    def loader(self, targets, batch_size=200):
        return DataLoader(TensorDataset(torch.zeros(len(targets), 1), targets), batch_size)

    def simulate(self, gates, seed):
        torch.manual_seed(seed)
        return self.loader(self.likelihood(gates["0"]).sample((self.examples,)))

    def exact(self, loader, factor=1.0):
        """A switched network whose guide is the posterior, or `factor` times as concentrated."""
        switched = self.switched()
        targets = torch.cat([batch[1] for batch in loader])
        with torch.no_grad():
            self.assign(switched.guide.switches[0], targets, factor)
        return switched

    def posterior(self, loader, factor=1.0):
        return bp.SwitchPosterior(dict(self.exact(loader, factor).guide.items()), [])

    def svi(self, loader, seed=0, epochs=100):
        switched = self.switched()
        posterior = bp.fit_switches(
            switched,
            loader,
            epochs=epochs,
            estimator=bp.Implicit(1, "example"),
            learning_rate=0.05,
            seed=seed,
            fabric=self.fabric,
            progress=False,
        )
        return switched, posterior


class GaussianToy(Toy):
    prototype = Gaussian()
    noise = 6.0

    def likelihood(self, output):
        return dist.Normal(output, self.noise).to_event(1)

    def moments(self, targets):
        """Mean and standard deviation of the gates, in closed form."""
        precision = 1 + len(targets) / self.noise**2
        return targets.sum(0) / self.noise**2 / precision, precision**-0.5

    def log_evidence(self, targets):
        n, variance = len(targets), self.noise**2
        total, squares = targets.double().sum(0), targets.double().square().sum(0)
        each = (
            -n / 2 * math.log(2 * math.pi * variance)
            - 0.5 * math.log(1 + n / variance)
            - squares / (2 * variance)
            + total.square() / variance**2 / (2 * (1 + n / variance))
        )
        return each.sum().item()

    def assign(self, switch, targets, factor):
        switch.loc, scale = self.moments(targets)
        switch.scale = torch.full_like(switch.loc, scale / factor)


class DirichletToy(Toy):
    channels = 4
    prototype = Dirichlet(concentration=1.0, total=1.0)

    def likelihood(self, output):
        return dist.Categorical(probs=output)

    def log_evidence(self, targets):
        counts = torch.bincount(targets, minlength=self.channels).double()
        gains = torch.lgamma(1 + counts).sum() + math.lgamma(self.channels)
        return (gains - math.lgamma(self.channels + len(targets))).item()

    def assign(self, switch, targets, factor):
        counts = torch.bincount(targets, minlength=self.channels)
        switch.factor_concentration = (1.0 + counts) * factor**2


@pytest.fixture(scope="session", params=[GaussianToy, DirichletToy])
def toy(request):
    return request.param()


@pytest.fixture(scope="session")
def gaussian():
    return GaussianToy()


@pytest.fixture(scope="session")
def dirichlet():
    return DirichletToy()


@pytest.fixture
def classifier():
    """A small classifier of two groups, its held-out data, and a posterior of its gates."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    groups = bp.trace_groups(network, torch.zeros(1, 3))
    inputs, labels = torch.randn(50, 3), torch.randint(0, 2, (50,))
    switches = {name: Gaussian().bind(size) for name, size in groups.sizes.items()}
    with torch.no_grad():
        for switch in switches.values():
            switch.loc = torch.linspace(0.2, 1.5, switch.size)
            switch.scale = torch.full((switch.size,), 0.3)
    return SimpleNamespace(
        network=network,
        groups=groups,
        inputs=inputs,
        labels=labels,
        loader=DataLoader(TensorDataset(inputs, labels), 16),
        posterior=bp.SwitchPosterior(switches, []),
    )
