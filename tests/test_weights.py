"""Gaussian weight posteriors against drawn weights, closed forms and plain networks."""

import copy

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import nn
from torch.distributions import kl_divergence
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

import bayesprune as bp
from bayesprune.errors import ConfigError
from bayesprune.svi import negative_elbo
from bayesprune.switches import Dirichlet, LogNormal

LAYERS = {
    "linear": (nn.Linear(4, 3), (5, 4)),
    "no bias": (nn.Linear(4, 3, bias=False), (5, 4)),
    "convolution": (nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), (2, 2, 5, 5)),
    "reflected": (nn.Conv1d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 2, 6)),
    "volume": (nn.Conv3d(1, 2, 2), (1, 1, 3, 3, 3)),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    plain, shape = LAYERS[request.param]
    network = nn.Sequential(copy.deepcopy(plain)).double()
    noisy = copy.deepcopy(network)
    bp.GaussianWeights(init_sd=0.3).attach(noisy)
    return network, noisy, torch.randn(shape, dtype=torch.double)


def test_outputs_are_those_of_drawn_weights(layer):
    plain, noisy, inputs = layer
    outputs = torch.stack([noisy(inputs) for _ in range(4000)])
    drawn = []
    for _ in range(4000):
        parameters = {n: p + 0.3 * torch.randn_like(p) for n, p in plain.named_parameters()}
        drawn.append(torch.func.functional_call(plain, parameters, inputs))
    drawn = torch.stack(drawn).detach()
    error = ((outputs.var(0) + drawn.var(0)) / 4000).sqrt()
    assert ((outputs.mean(0) - drawn.mean(0)).abs() <= 5 * error).all()
    ratio = (outputs.var(0) / drawn.var(0)).detach()
    assert ((ratio - 1).abs() < 5 * (4 / 4000) ** 0.5).all()


def test_evaluation_uses_the_means(layer):
    plain, noisy, inputs = layer
    assert torch.equal(noisy.eval()(inputs), plain(inputs))


@pytest.fixture
def network():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 5), nn.ReLU(), nn.Linear(5, 3)
    )


@pytest.fixture
def example():
    return torch.randn(6, 1, 5, 5), torch.tensor([0, 1, 2, 0, 1, 2])


def switched(network, example, switch=None, **arguments):
    arguments = {"train_weights": True, "weight_posterior": bp.GaussianWeights(), **arguments}
    groups = bp.trace_groups(network, example[0][:1])
    return bp.SwitchedNetwork(network, groups, switch or LogNormal(), num_data=60, **arguments)


def test_the_divergence_covers_every_weight(network, example):
    with_weights = switched(network, example)
    without = switched(network, example, weight_posterior=None)
    kl = sum(
        kl_divergence(dist.Normal(p, 0.01), dist.Normal(torch.zeros(()), 1.0)).sum()
        for p in network.parameters()
    )
    terms = {}
    for made, name in ((with_weights, "with"), (without, "without")):
        made.eval()
        terms[name] = negative_elbo(made, bp.AnalyticMean(), *example)
    for term in ("loss", "kl"):
        found = getattr(terms["with"], term) - getattr(terms["without"], term)
        torch.testing.assert_close(60 * found, kl)


def test_the_loss_is_that_of_pyro(network, example):
    made = switched(network, example).eval()  # layers put out their means
    torch.manual_seed(1)
    loss = 60 * negative_elbo(made, bp.Implicit(1), *example).loss
    torch.manual_seed(1)
    expected = TraceMeanField_ELBO().differentiable_loss(made, made.guide, *example)
    torch.testing.assert_close(loss, expected)
    slopes = [torch.autograd.grad(value, list(made.parameters())) for value in (loss, expected)]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("switch", [LogNormal(), Dirichlet()], ids=repr)
def test_a_fit_trains_means_and_spreads_and_folds_to_a_plain_network(network, example, switch):
    made = switched(network, example, switch)
    loader = DataLoader(ConcatDataset([TensorDataset(*example)] * 10), batch_size=30)
    posterior = bp.fit_switches(made, loader, epochs=2, progress=False)
    spreads = [p for n, p in made.network.named_parameters() if n.endswith("_log_sd")]
    assert len(spreads) == len(list(network.parameters()))
    assert all((p != p.flatten()[0]).any() for p in spreads)
    folded = made.fold(posterior.mean)
    assert [type(m) for m in folded.modules()] == [type(m) for m in network.modules()]
    assert list(folded.state_dict()) == list(network.state_dict())
    torch.testing.assert_close(
        folded(example[0]), made.network(example[0], posterior.mean), rtol=1e-4, atol=1e-5
    )
    plan = bp.select(posterior, bp.TopK(2), groups=made.groups)
    small = bp.remove_channels(folded, plan, example[0][:1])
    assert small(example[0]).shape == (6, 3)


def test_a_copy_has_posteriors_of_its_own(network, example):
    made = switched(network, example)
    other = copy.deepcopy(made)
    with torch.no_grad():
        for parameter in other.network.parameters():
            parameter.zero_()
    kl, other_kl = (negative_elbo(m, bp.AnalyticMean(), *example).kl for m in (made, other))
    assert kl != other_kl


def test_frozen_weights_have_no_posterior(network, example):
    with pytest.raises(ConfigError, match="train_weights"):
        switched(network, example, train_weights=False)


@pytest.mark.parametrize("arguments", [{"prior_sd": 0.0}, {"init_sd": float("nan")}])
def test_bad_hyper_parameters(arguments):
    with pytest.raises(ConfigError, match="GaussianWeights"):
        bp.GaussianWeights(**arguments)


def test_weights_without_posterior_are_named():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ConvTranspose2d(4, 3, 3))
    with pytest.warns(UserWarning, match=r"no posterior for 1\.weight: only linear"):
        bp.GaussianWeights().attach(network)
