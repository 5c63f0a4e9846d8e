"""Fits against posteriors that are known, and what a fit promises besides."""

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.nn.module import PyroParam
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bayesprune as bp
from bayesprune.errors import CheckpointError, ConfigError, DataError, FitError
from bayesprune.svi import negative_elbo
from bayesprune.switches import Dirichlet, LogisticNormal, Site, Switch
from bayesprune.training import MetricsWriter, make_fabric


@pytest.fixture(scope="module")
def fabric():
    from bayesprune.training import FabricConfig

    return make_fabric(FabricConfig(accelerator="cpu"))


@pytest.fixture
def fit(fabric):
    def fit(switched, loader, **arguments):
        return bp.fit_switches(switched, loader, fabric=fabric, progress=False, **arguments)

    return fit


# A posterior that is known -----------------------------------------------------------------------


class Gaussian(Switch):
    """Gates of a user's own: normal prior and factor."""

    reference = "none"

    def initialise(self, keep):
        self.loc = PyroParam(torch.ones(self.size))
        self.scale = PyroParam(0.5 * torch.ones(self.size), constraints.softplus_positive)

    def sites(self):
        prior = dist.Normal(torch.ones(self.size), 1.0).to_event(1)
        return {"value": Site(prior, dist.Normal(self.loc, self.scale).to_event(1))}

    def gate(self, values):
        return values["value"]

    def mean(self):
        return self.loc.detach()

    def sd(self):
        return self.scale.detach()


INFORMATION = torch.tensor([0.5, 4.0, 30.0, 9.0])  # about each gate in the data


@pytest.fixture
def linear():
    """y = Σ z x + noise with orthogonal x, so that the posterior of z is independent normals."""
    count, units = 64, len(INFORMATION)
    basis, _ = torch.linalg.qr(torch.randn(count, units))
    inputs = basis * INFORMATION.sqrt()
    targets = inputs @ torch.tensor([0.2, 2.0, -0.5, 1.0]) + torch.randn(count)
    network = nn.Sequential(nn.Linear(units, units, False), nn.Linear(units, 1, False))
    with torch.no_grad():
        network[0].weight.copy_(torch.eye(units))
        network[1].weight.fill_(1.0)
    switched = bp.SwitchedNetwork(
        network,
        bp.trace_groups(network, inputs[:1]),
        Gaussian(),
        num_data=count,
        likelihood=lambda output: dist.Normal(output.squeeze(-1), 1.0),
    )
    mean = (1 + inputs.T @ targets) / (1 + INFORMATION)
    data = TensorDataset(inputs, targets)
    return switched, data, mean, (1 + INFORMATION).rsqrt()


@pytest.mark.parametrize(
    ("estimator", "batch"),
    [
        (bp.AnalyticMean(), 64),
        (bp.AnalyticMean(), 16),
        (bp.Implicit(4), 64),
        (bp.Implicit(16, "group"), 64),
        (bp.Implicit(1, "example"), 32),
    ],
    ids=repr,
)
def test_recovers_a_known_posterior(linear, fit, estimator, batch):
    switched, data, mean, sd = linear
    loader = DataLoader(data, batch, shuffle=True)
    steps = 64 // batch
    posterior = fit(switched, loader, epochs=240 // steps, estimator=estimator, learning_rate=0.1)
    found = posterior.mean["0"]
    assert ((found - mean).abs() < 0.1 * sd).all(), (found - mean) / sd
    # Without draws, nothing in the likelihood depends on the spread: it stays that of the prior.
    spread = torch.ones(4) if isinstance(estimator, bp.AnalyticMean) else sd
    torch.testing.assert_close(posterior.sd["0"], spread, rtol=0.15, atol=0)


# Finding what matters ----------------------------------------------------------------------------

HIDDEN, INFORMATIVE = 32, 8


@pytest.fixture(scope="module")
def toy():
    """A net of which 8 of 32 hidden units make the labels; the others add noise to its output."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(12, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 4)).eval()
    inputs = torch.randn(512, 12)
    with torch.no_grad():
        network[2].weight.mul_(20)
        clean = network[2].weight[:, :INFORMATIVE]
        labels = (network[:2](inputs)[:, :INFORMATIVE] @ clean.T).argmax(1)
    return network, bp.trace_groups(network, inputs[:1]), TensorDataset(inputs, labels)


def switched_toy(toy, switch=None, **arguments):
    network, groups, data = toy
    return bp.SwitchedNetwork(
        network, groups, switch or Dirichlet(), num_data=len(data), **arguments
    )


def toy_loader(toy, batch=64):
    return DataLoader(toy[2], batch, shuffle=True)


def auc(posterior):
    informative = torch.arange(HIDDEN) < INFORMATIVE
    return roc_auc_score(informative, posterior.scores().values["0"])


@pytest.mark.parametrize(
    ("switch", "estimator"),
    [
        (Dirichlet(), bp.AnalyticMean()),
        (Dirichlet(), bp.Implicit(16, "group")),
        (LogisticNormal(), bp.Implicit(16, "group")),
    ],
    ids=repr,
)
def test_finds_the_informative_units(toy, fit, switch, estimator):
    posterior = fit(switched_toy(toy, switch), toy_loader(toy), epochs=15, estimator=estimator)
    assert auc(posterior) > 0.9


@pytest.mark.parametrize("total", ["keep", "anneal"])
def test_gates_that_compete_for_places_are_bimodal(toy, fit, total):
    switched = switched_toy(toy, Dirichlet(total=total), keep=INFORMATIVE / HIDDEN)
    posterior = fit(switched, toy_loader(toy), epochs=15)
    gates = posterior.mean["0"]
    assert auc(posterior) > 0.9
    assert gates.sum() == pytest.approx(INFORMATIVE)
    assert 6 <= (gates > 0.5).sum() <= 10
    assert ((gates > 0.15) & (gates < 0.5)).sum() <= 4


def test_history(toy, fit):
    switched = switched_toy(toy)
    posterior = fit(switched, toy_loader(toy), epochs=4, kl_warmup=0.5)
    history = posterior.history
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    for row in history:
        assert row["elbo"] == pytest.approx(-row["nll"] - row["kl"], rel=1e-4)
    assert history[0]["loss"] < -history[0]["elbo"]  # the divergence counts less at first
    assert history[-1]["loss"] == pytest.approx(-history[-1]["elbo"], rel=1e-5)
    assert history[-1]["nll"] < history[0]["nll"]
    kl = negative_elbo(switched, bp.AnalyticMean(), *next(iter(toy_loader(toy)))).kl.item()
    assert history[-1]["kl"] == pytest.approx(kl, rel=0.05)
    assert switched.guide.kl_weight == 1


def test_mass_reaches_its_target(toy, fit):
    switched = switched_toy(toy, Dirichlet(total="anneal"), keep=0.25)
    posterior = fit(switched, [next(iter(toy_loader(toy)))], epochs=1)
    assert posterior.mean["0"].sum() == pytest.approx(8)


# One group at a time -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deep():
    torch.manual_seed(6)
    network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    data = TensorDataset(torch.randn(60, 6), torch.randint(3, (60,)))
    return network, bp.trace_groups(network, torch.zeros(1, 6)), data


def test_one_group_after_the_other(deep, fit, tmp_path):
    network, groups, data = deep
    switched = bp.SwitchedNetwork(network, groups, Dirichlet(), num_data=60)
    first, second = (switch.mean() for _, switch in switched.guide.items())
    seen = []
    switched.network.register_forward_pre_hook(
        lambda _, args: seen.append((set(args[1]), [s.mean() for s in switched.guide.switches]))
    )
    metrics = MetricsWriter(tmp_path / "metrics.csv")
    posterior = fit(switched, DataLoader(data, 20), epochs=3, joint=False, metrics=metrics)
    during_first, during_second = seen[:9], seen[9:]
    assert [active for active, _ in seen] == 9 * [{"0"}] + 9 * [{"2"}]
    assert all(torch.equal(means[1], second) for _, means in during_first)
    assert all(torch.equal(means[0], posterior.mean["0"]) for _, means in during_second)
    assert not torch.equal(posterior.mean["0"], first)
    assert not torch.equal(posterior.mean["2"], second)
    assert [row["stage"] for row in posterior.history] == 3 * ["fit-0"] + 3 * ["fit-2"]
    assert set(switched.guide()) == {"0", "2"}
    assert posterior.names == ["0", "2"]


def test_one_group_alone_is_a_network_with_one_switch(deep, fit):
    network, groups, data = deep
    loader = DataLoader(data, 60)
    alone = bp.SwitchedNetwork(network, groups, {"2": Dirichlet()}, num_data=60)
    all_groups = bp.SwitchedNetwork(network, groups, Dirichlet(), num_data=60)
    expected = fit(alone, loader, epochs=5).mean["2"]
    torch.testing.assert_close(fit(all_groups, loader, epochs=5, joint=False).mean["2"], expected)


# Reproducible, resumable -------------------------------------------------------------------------


def same(one, other):
    pairs = zip(one.switches.values(), other.switches.values(), strict=True)
    return all(
        torch.equal(a, b)
        for first, second in pairs
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_a_seed_gives_one_posterior(deep, fit):
    network, groups, data = deep

    def posterior(seed):
        torch.rand(seed + 1)  # whatever was drawn before
        switched = bp.SwitchedNetwork(network, groups, LogisticNormal(), num_data=60)
        loader = DataLoader(data, 20, shuffle=True)
        return fit(switched, loader, epochs=2, estimator=bp.Implicit(4, "group"), seed=seed)

    assert same(posterior(0), posterior(0))
    assert not same(posterior(0), posterior(1))


class Interrupted(TensorDataset):
    """Fails once, after a number of examples."""

    left = None

    def __getitem__(self, index):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.left = None
                raise KeyboardInterrupt
        return super().__getitem__(index)


@pytest.mark.parametrize("joint", [True, False])
def test_a_fit_goes_on_where_it_was_interrupted(deep, fit, tmp_path, joint):
    network, groups, data = deep
    data = Interrupted(*data.tensors)

    def attempt(checkpoint):
        switch = Dirichlet(total="anneal")
        switched = bp.SwitchedNetwork(network, groups, switch, num_data=60, keep=0.5)
        return switched, lambda: fit(
            switched,
            DataLoader(data, 20, shuffle=True),
            epochs=4,
            estimator=bp.Implicit(4, "group"),
            kl_warmup=0.6,
            joint=joint,
            checkpoint=checkpoint,
        )

    whole = attempt(None)[1]()
    path = tmp_path / "state.safetensors"
    data.left = 60 * (2 if joint else 6) + 30  # in the third epoch, of the last group
    switched, run = attempt(path)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert switched.guide.active == {"0", "2"}
    assert switched.guide.kl_weight == 1
    resumed = attempt(path)[1]()
    assert same(resumed, whole)
    assert resumed.history == whole.history
    files = ["state.safetensors"] if joint else ["state-0.safetensors", "state-2.safetensors"]
    assert sorted(file.name for file in tmp_path.iterdir()) == files
    assert same(attempt(path)[1](), whole)  # nothing is left to do


@pytest.mark.parametrize(
    "other",
    [
        {"estimator": bp.Implicit(4)},
        {"learning_rate": 0.2},
        {"kl_warmup": 0.5},
        {"switch": Dirichlet(concentration=0.5)},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_checkpoint_of_another_fit(deep, fit, tmp_path, other):
    network, groups, data = deep

    def run(switch=None, **arguments):
        switched = bp.SwitchedNetwork(network, groups, switch or Dirichlet(), num_data=60)
        path = tmp_path / "state.safetensors"
        return fit(switched, DataLoader(data, 20), epochs=1, checkpoint=path, **arguments)

    run()
    with pytest.raises(CheckpointError):
        run(**other)


# Loaders and weights -----------------------------------------------------------------------------


class Batches:
    """Nothing but a length and an iterator."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def test_any_loader(deep, fit):
    network, groups, data = deep
    batches = list(DataLoader(data, 20))
    posteriors = []
    for loader in (DataLoader(data, 20), batches, Batches(batches)):
        switched = bp.SwitchedNetwork(network, groups, Dirichlet(), num_data=60)
        posteriors.append(fit(switched, loader, epochs=2))
    assert same(posteriors[0], posteriors[1])
    assert same(posteriors[0], posteriors[2])


def test_weights_are_trained_on_request(deep, fit):
    network, groups, data = deep
    before = [p.clone() for p in network.parameters()]
    for train_weights in (False, True):
        switched = bp.SwitchedNetwork(
            network, groups, Dirichlet(), num_data=60, train_weights=train_weights
        )
        fit(switched, DataLoader(data, 20), epochs=1)
        pairs = zip(before, switched.network.parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs) == train_weights
        assert not any(module.training for module in switched.modules())
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


# Errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [{"epochs": 0}, {"kl_warmup": 1.5}, {"learning_rate": 0.0}, {"weight_learning_rate": -1.0}],
)
def test_bad_arguments(deep, fit, arguments):
    network, groups, data = deep
    switched = bp.SwitchedNetwork(network, groups, Dirichlet(), num_data=60)
    with pytest.raises(ConfigError):
        fit(switched, DataLoader(data, 20), **arguments)


def test_trained_weights_are_not_fitted_group_by_group(deep, fit):
    network, groups, data = deep
    switched = bp.SwitchedNetwork(network, groups, Dirichlet(), num_data=60, train_weights=True)
    with pytest.raises(ConfigError, match="joint"):
        fit(switched, DataLoader(data, 20), joint=False)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, y: (x.fill_(torch.nan), y), DataError, "NaN"),
        (lambda x, y: (x, y + 3), FitError, "from 3 to 5"),
        (lambda x, y: (x[:, :-1], y), FitError, "the network fails on a batch of inputs"),
        (lambda x, y: (x, y[:-1]), DataError, "same number"),
        (lambda x, y: (x,), DataError, "two tensors"),
    ],
)
def test_bad_data(deep, fit, change, error, message):
    network, groups, data = deep
    switched = bp.SwitchedNetwork(network, groups, Dirichlet(), num_data=60)
    batch = change(*(tensor.clone() for tensor in data.tensors))
    with pytest.raises(error, match=message):
        fit(switched, [batch])


@pytest.mark.parametrize("wrong", [3, -1, 0.5])
def test_targets_are_checked_at_every_step(deep, fit, wrong):
    network, groups, (inputs, targets) = deep[0], deep[1], deep[2].tensors
    switched = bp.SwitchedNetwork(network, groups, Dirichlet(), num_data=60)
    later = targets.float() if isinstance(wrong, float) else targets.clone()
    later[7] = wrong
    with pytest.raises(FitError, match="does not accept .* the targets"):
        fit(switched, [(inputs, targets), (inputs, later)])


def test_targets_of_another_shape(linear, fit):
    switched, data, *_ = linear
    inputs, targets = data.tensors
    with pytest.raises(ConfigError, match=r"shape \(64, 64\) for targets of shape \(64, 1\)"):
        fit(switched, [(inputs, targets[:, None])])


class Negative(Gaussian):
    """A scale that a normal distribution refuses."""

    def sites(self):
        prior = dist.Normal(torch.ones(self.size), 1.0).to_event(1)
        return {"value": Site(prior, dist.Normal(self.loc, -self.scale).to_event(1))}


def test_parameters_that_a_site_refuses(deep, fit):
    network, groups, data = deep
    switched = bp.SwitchedNetwork(network, groups, Negative(), num_data=60)
    with pytest.raises(FitError, match=r"^0: a site of Negative.*parameter scale"):
        fit(switched, DataLoader(data, 20))


def test_parameters_that_are_not_finite(deep, fit):
    network, groups, data = deep
    switched = bp.SwitchedNetwork(network, groups, Dirichlet(), num_data=60)
    with torch.no_grad():
        list(switched.guide.parameters())[1].fill_(torch.nan)
    with pytest.raises(FitError, match="^2: expected finite parameters"):
        fit(switched, DataLoader(data, 20))


def test_another_number_of_examples_is_told(deep, fit):
    network, groups, data = deep
    switched = bp.SwitchedNetwork(network, groups, Dirichlet(), num_data=3)  # of batches
    with pytest.warns(UserWarning, match=r"has 60 examples, .* made for 3; .* counts 20 times"):
        fit(switched, DataLoader(data, 20))


@pytest.mark.parametrize("switch", [Dirichlet, None, "Dirichlet", {"0": "Dirichlet"}])
def test_what_is_no_switch_is_refused(deep, switch):
    network, groups, _ = deep
    with pytest.raises(ConfigError, match="expected a Switch like Dirichlet"):
        bp.SwitchedNetwork(network, groups, switch, num_data=60)


# Networks with several arguments -----------------------------------------------------------------


class Pair(nn.Module):
    """Two inputs, each through a layer of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(8, 2)

    def forward(self, one, other):
        both = torch.cat([self.first(one), self.second(other)], 1)
        return self.last(both.relu())


@pytest.mark.parametrize("share", ["batch", "group", "example"])
def test_several_inputs_all_the_way(fabric, fit, share):
    rows = [((torch.randn(3), torch.randn(2)), i % 2) for i in range(24)]
    loader = DataLoader(rows, batch_size=8)
    network = Pair()
    bp.train_network(network, loader, bp.TrainConfig(epochs=1), fabric=fabric, progress=False)
    example = (torch.zeros(1, 3), torch.zeros(1, 2))
    groups = bp.trace_groups(network, example)
    switched = bp.SwitchedNetwork(network, groups, Dirichlet(), num_data=24)
    posterior = fit(switched, loader, epochs=1, estimator=bp.Implicit(2, share))
    plan = bp.select(posterior, bp.Budget(macs=0.6), groups=groups, network=network, loader=loader)
    bp.criteria.Fisher().scores(network, groups, loader)
    small = bp.remove_channels(switched.fold(posterior.mean), plan, example)
    assert 0 <= bp.evaluate(small, loader)["error"] <= 1


@pytest.mark.parametrize(
    "batch", [((), torch.zeros(2)), ((torch.zeros(2), torch.zeros(3)), torch.zeros(2))]
)
def test_inputs_that_do_not_fit_each_other(fit, batch):
    groups = bp.trace_groups(Pair(), (torch.zeros(1, 3), torch.zeros(1, 2)))
    switched = bp.SwitchedNetwork(Pair(), groups, Dirichlet(), num_data=2)
    with pytest.raises(DataError, match="rows"):
        fit(switched, [batch])
