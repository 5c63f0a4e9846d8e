"""Estimators against hand computations, closed forms and each other."""

import itertools
import math
from collections.abc import Mapping

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import kl_divergence
from torch.nn import functional

import bayesprune as bp
from bayesprune.errors import ConfigError, FitError
from bayesprune.svi import negative_elbo
from bayesprune.switches import Bernoulli, Dirichlet, Site, SpikeAndSlab, Switch

UNITS, NUM_DATA = 6, 1000
SPREAD = [1.0, 0.4, 2.5, 0.8, 0.2, 1.6]
WAYS = [bp.Implicit(1), bp.Implicit(16, "group"), bp.Implicit(1, "example")]
ways = pytest.mark.parametrize("estimator", WAYS, ids=lambda way: way.share)


def normal(output):
    return dist.Normal(output.squeeze(-1), 1.0)


def switched(switch=None, *, hidden=None, outputs=1, likelihood=normal):
    """A network of `UNITS` gated units in double precision; linear in the gates by default."""
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Linear(4, UNITS), hidden or nn.Identity(), nn.Linear(UNITS, outputs)
    ).double()
    groups = bp.trace_groups(network, torch.zeros(1, 4, dtype=torch.double))
    made = bp.SwitchedNetwork(
        network, groups, switch or Dirichlet(), num_data=NUM_DATA, likelihood=likelihood
    ).double()
    if switch is None:
        phi = torch.tensor(SPREAD, dtype=torch.double)
        with torch.no_grad():
            made.guide.switches[0].factor_concentration_unconstrained.copy_(phi.expm1().log())
    return made


def batch(size, outputs=1):
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(size, 4, generator=generator, dtype=torch.double)
    if outputs > 1:
        return inputs, torch.randint(outputs, (size,), generator=generator)
    return inputs, torch.randn(size, generator=generator, dtype=torch.double)


def loss(network, estimator, data):
    """The negative ELBO in nats of the whole data set."""
    return NUM_DATA * negative_elbo(network, estimator, *data).loss


def divergence(network):
    (switch,) = network.guide.switches
    return sum(kl_divergence(site.factor, site.prior) for site in switch.sites().values())


def gradient(network, value):
    (grad,) = torch.autograd.grad(value, list(network.guide.parameters()))
    return grad


def exact_loss(network, data):
    """The negative ELBO in closed form: the output is linear in the shares."""
    (switch,) = network.guide.switches
    site = switch.sites()["share"]
    first, _, last = network.network.network
    effect = switch.mass * first(data[0]) * last.module.weight
    total = site.factor.concentration.sum()
    mean = site.factor.mean
    covariance = (torch.diag(mean) - torch.outer(mean, mean)) / (total + 1)
    residual = data[1] - effect @ mean - last.module.bias
    squares = residual.square() + ((effect @ covariance) * effect).sum(-1)
    nll = (squares / 2 + math.log(2 * math.pi) / 2).mean()
    return NUM_DATA * nll + divergence(network)


# Analytic mean -----------------------------------------------------------------------------------


def test_analytic_mean_is_the_hand_computation():
    network = switched(hidden=nn.Tanh(), outputs=3, likelihood=bp.network.categorical)
    inputs, targets = batch(20, outputs=3)
    with torch.no_grad():
        network.guide.switches[0].factor_concentration_unconstrained.normal_()
    first, _, last = network.network.network
    phi = functional.softplus(network.guide.switches[0].factor_concentration_unconstrained)
    gates = UNITS * phi / phi.sum()
    logits = last.module((first(inputs)).tanh() * gates)
    nll = functional.cross_entropy(logits, targets, reduction="sum")
    a, total = torch.tensor(0.1, dtype=torch.double), phi.sum()
    kl = (
        total.lgamma()
        - phi.lgamma().sum()
        - (UNITS * a).lgamma()
        + UNITS * a.lgamma()
        + ((phi - a) * (phi.digamma() - total.digamma())).sum()
    )
    expected = NUM_DATA / 20 * nll + kl
    found = loss(network, bp.AnalyticMean(), (inputs, targets))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient(network, found), gradient(network, expected))


def test_analytic_mean_has_no_noise():
    network = switched()
    first, second = (loss(network, bp.AnalyticMean(), batch(10)) for _ in range(2))
    assert torch.equal(first, second)


class Heavy(Switch):
    """Normal factor, Student prior: no divergence in closed form."""

    reference = "none"

    def initialise(self, keep):
        self.loc = nn.Parameter(torch.ones(self.size))

    def sites(self):
        prior = dist.StudentT(torch.full_like(self.loc, 3.0)).to_event(1)
        return {"value": Site(prior, dist.Normal(self.loc, 0.5).to_event(1))}

    def gate(self, values):
        return values["value"]


@pytest.mark.parametrize("estimator", [bp.AnalyticMean(), *WAYS], ids=repr)
def test_a_missing_divergence_is_an_error_that_names_the_site(estimator):
    with pytest.raises(FitError, match=r"0\.value: .* Normal factor from a StudentT prior"):
        loss(switched(Heavy()), estimator, batch(10))


class Loose(Heavy):
    """Units that are said to be variables of their own."""

    def sites(self):
        prior, factor = dist.Normal(torch.zeros_like(self.loc), 1.0), dist.Normal(self.loc, 0.5)
        return {"value": Site(prior, factor)}


def test_a_site_with_a_batch_shape_is_an_error_that_names_it():
    with pytest.raises(ConfigError, match=r"0\.value: .*shape \(6,\); \.to_event"):
        loss(switched(Loose()), bp.AnalyticMean(), batch(10))


# Unbiased draws ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gradients():
    """Of each way of drawing, many gradients on one batch; and the exact one."""
    network, data = switched(), batch(50)
    torch.manual_seed(3)
    drawn = {
        way.share: torch.stack([gradient(network, loss(network, way, data)) for _ in range(400)])
        for way in WAYS
    }
    return drawn, gradient(network, exact_loss(network, data))


@ways
def test_gradients_are_unbiased(gradients, estimator):
    drawn, exact = gradients
    sample = drawn[estimator.share]
    error = sample.std(0) / math.sqrt(len(sample))
    assert ((sample.mean(0) - exact).abs() < 5 * error).all()


def test_draws_per_example_and_per_group_have_less_variance(gradients):
    variance = {share: sample.var(0).sum() for share, sample in gradients[0].items()}
    assert variance["example"] < variance["group"] < 0.5 * variance["batch"]


@ways
def test_losses_are_unbiased(estimator):
    network, data = switched(), batch(50)
    with torch.no_grad():
        sample = torch.stack([loss(network, estimator, data) for _ in range(200)])
        error = sample.std() / math.sqrt(len(sample))
        assert abs(sample.mean() - exact_loss(network, data)) < 5 * error


def test_implicit_gradient_of_a_product_of_shares():
    phi = torch.tensor(SPREAD, dtype=torch.double, requires_grad=True)
    weights = torch.linspace(-1, 2, UNITS, dtype=torch.double)
    total = phi.sum()
    mean = phi / total
    covariance = (torch.diag(mean) - torch.outer(mean, mean)) / (total + 1)
    (exact,) = torch.autograd.grad(weights @ covariance @ weights + (weights @ mean) ** 2, phi)
    slopes = []
    for _ in range(30):
        (site,) = Dirichlet().bind(UNITS).sites().values()
        shares = type(site.factor)(phi).rsample((10_000,))
        slopes.append(torch.autograd.grad((shares @ weights).square().mean(), phi)[0])
    slopes = torch.stack(slopes)
    error = slopes.std(0) / math.sqrt(len(slopes))
    assert ((slopes.mean(0) - exact).abs() < 5 * error).all()


def test_more_samples_of_a_shared_draw_run_the_network_as_often():
    network, calls = switched(), []
    network.network.register_forward_hook(lambda *_: calls.append(1))
    for estimator, expected in (
        (bp.Implicit(3), 3),
        (bp.Implicit(3, "group"), 1),
        (bp.Implicit(3, "example"), 3),
        (bp.AnalyticMean(), 1),
    ):
        calls.clear()
        loss(network, estimator, batch(8))
        assert len(calls) == expected


# Who shares a draw -------------------------------------------------------------------------------


class Product(Switch):
    """One scale for all units times one per unit: two latent variables of different shapes."""

    reference = "none"

    def initialise(self, keep):
        self.loc = nn.Parameter(torch.zeros(self.size))

    def sites(self):
        prior = dist.Normal(torch.zeros_like(self.loc), 1.0).to_event(1)
        scale = dist.LogNormal(self.loc.new_zeros(()), 1.0)
        return {
            "scale": Site(scale, dist.LogNormal(self.loc.sum(), 0.5)),
            "unit": Site(prior, dist.Normal(self.loc, 1.0).to_event(1)),
        }

    def gate(self, values: Mapping[str, torch.Tensor]):
        return values["scale"][..., None] * values["unit"]


@pytest.mark.parametrize("prototype", [Dirichlet(), Product()], ids=["one site", "two sites"])
@pytest.mark.parametrize(
    ("estimator", "size", "counts"),
    [
        (bp.Implicit(4, "group"), 12, [3, 3, 3, 3]),
        (bp.Implicit(4, "group"), 10, [2, 2, 3, 3]),
        (bp.Implicit(16, "group"), 3, [1, 1, 1]),
        (bp.Implicit(1, "example"), 5, [1, 1, 1, 1, 1]),
    ],
)
def test_rows_of_gates(prototype, estimator, size, counts):
    network, seen = switched(prototype), []
    network.network.register_forward_pre_hook(lambda _, args: seen.append(args[1]["0"]))
    assert loss(network, estimator, batch(size)).isfinite()
    (gates,) = seen
    assert gates.shape == (size, UNITS)
    assert sorted(gates.unique(dim=0, return_counts=True)[1].tolist()) == counts


def test_groups_are_shuffled():
    network, rows = switched(), []
    network.network.register_forward_pre_hook(lambda _, args: rows.append(args[1]["0"][:, 0]))
    for _ in range(2):
        loss(network, bp.Implicit(2, "group"), batch(40))
    assert not torch.equal(rows[0] == rows[0][0], rows[1] == rows[1][0])


# Scaling -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 50, 100])
def test_loss_has_the_same_expectation_for_all_batch_sizes(size):
    network, (inputs, targets) = switched(), batch(100)
    parts = zip(inputs.split(size), targets.split(size), strict=True)
    losses = torch.stack([loss(network, bp.AnalyticMean(), part) for part in parts])
    whole = loss(network, bp.AnalyticMean(), (inputs, targets))
    torch.testing.assert_close(losses.mean(), whole)


@pytest.mark.parametrize("estimator", [bp.AnalyticMean(), *WAYS], ids=lambda e: type(e).__name__)
def test_annealing_scales_the_divergence_alone(estimator):
    network, data, losses = switched(), batch(10), {}
    for weight in (1.0, 0.25):
        network.guide.kl_weight = weight
        torch.manual_seed(4)
        losses[weight] = loss(network, estimator, data)
    torch.testing.assert_close(losses[1.0] - losses[0.25], 0.75 * divergence(network))


@pytest.mark.parametrize("args", [{"num_samples": 0}, {"num_samples": -3}, {"share": "all"}])
def test_bad_arguments(args):
    with pytest.raises(ConfigError, match=next(iter(args))):
        bp.Implicit(**args)


# Bernoulli gates: gradients against exact enumeration --------------------------------------------


def enumerated(network, data):
    """The expected negative log likelihood over all gates, differentiable in the logits."""
    (switch,) = network.guide.switches
    logits, total = switch.sites()["gate"].factor.base_dist.logits, 0.0
    for bits in itertools.product((0.0, 1.0), repeat=UNITS):
        gates = torch.tensor(bits, dtype=torch.double)
        output = network.network(data[0], {network.guide.names[0]: gates})
        density = network.likelihood(output).log_prob(data[1]).sum()
        mass = dist.Bernoulli(logits=logits).log_prob(gates).sum().exp()
        total = total - mass * density * NUM_DATA / len(data[1])
    return total


@pytest.mark.parametrize("estimator", [bp.ARM(), bp.AR()], ids=repr)
def test_bernoulli_gradients_are_those_of_all_gates(estimator):
    network, data = switched(Bernoulli(init_probability=0.7), hidden=nn.Tanh()), batch(8)
    (switch,) = network.guide.switches
    with torch.no_grad():
        switch.phi.add_(torch.linspace(-0.3, 0.2, UNITS))
    expected = enumerated(network, data) + divergence(network)
    slope = gradient(network, expected)
    values, slopes = [], []
    for _ in range(1500):
        value = loss(network, estimator, data)
        values.append(value.detach())
        slopes.append(gradient(network, value))
    for drawn, truth in ((torch.stack(values), expected.detach()), (torch.stack(slopes), slope)):
        error = drawn.std(0) / len(drawn) ** 0.5
        assert ((drawn.mean(0) - truth).abs() <= 5 * error).all()
        assert (error < 0.2 * truth.norm()).all()  # too noisy an estimate would pass as well


def test_arm_varies_less_than_ar():
    network, data = switched(Bernoulli(init_probability=0.7), hidden=nn.Tanh()), batch(8)
    spread = {}
    for estimator in (bp.ARM(), bp.AR()):
        drawn = [gradient(network, loss(network, estimator, data)) for _ in range(300)]
        spread[type(estimator)] = torch.stack(drawn).var(0).sum()
    assert spread[bp.ARM] < spread[bp.AR]


def test_arm_trains_weights_and_other_sites_pathwise():
    """The weights' gradient is that of the drawn gates; relaxed sites are drawn along."""
    network, data = switched(Bernoulli(), hidden=nn.Tanh()), batch(8)
    weight = network.network.requires_grad_(True).network[0].weight
    slopes = [torch.autograd.grad(loss(network, bp.ARM(), data), weight)[0] for _ in range(1500)]
    slopes = torch.stack(slopes)
    (expected,) = torch.autograd.grad(enumerated(network, data), weight)
    error = slopes.std(0) / len(slopes) ** 0.5
    assert ((slopes.mean(0) - expected).abs() <= 5 * error + 1e-12).all()
    network = switched(SpikeAndSlab())
    loss(network, bp.ARM(), data).backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.guide.parameters())


@pytest.mark.parametrize("estimator", WAYS, ids=lambda way: way.share)
def test_implicit_refuses_gates_without_a_gradient(estimator):
    network = switched(Bernoulli())
    with pytest.raises(ConfigError, match="ARM"):
        loss(network, estimator, batch(8))
