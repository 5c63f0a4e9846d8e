"""Priors given by a divergence: values, dispatch, and what they refuse."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from scipy import integrate, stats
from torch.distributions import kl_divergence

from bayesprune.distributions import (
    HardConcrete,
    Improper,
    InformationBottleneckPrior,
    NonzeroPenalty,
    NormalJeffreys,
)
from bayesprune.errors import ConfigError


def double(*values):
    return torch.tensor(values, dtype=torch.double)


NORMAL = dist.Normal(double(0.5, -1.0, 0.0), double(0.1, 2.0, 1.0))
GATE = HardConcrete(double(-2.0, 0.0, 3.0))
SPIKE = dist.Bernoulli(double(0.2, 0.0, 1.0))
PAIRS = {
    "normal-jeffreys": (NORMAL, NormalJeffreys()),
    "hard concrete": (GATE, NonzeroPenalty(double(0.5, 2.0, 1.0))),
    "bernoulli": (SPIKE, NonzeroPenalty(3.0)),
    "information bottleneck": (NORMAL, InformationBottleneckPrior(0.3)),
}
EACH = pytest.mark.parametrize(("factor", "prior"), PAIRS.values(), ids=PAIRS)


class Flat(Improper):
    """Minus the entropy, up to a constant: a prior that accepts whatever has one."""

    def divergence(self, factor):
        return -factor.entropy()


@EACH
def test_events_sum(factor, prior):
    wide = prior.expand(torch.Size((3,)))
    each = kl_divergence(factor, prior)
    joint = kl_divergence(factor.to_event(1), wide.to_event(1))
    assert each.shape == (3,)
    assert (each >= 0).all()
    torch.testing.assert_close(joint, each.sum())
    assert type(wide) is type(prior)
    assert wide.expand(torch.Size((2, 3))).batch_shape == (2, 3)


@EACH
def test_log_prob_is_no_loss_and_there_are_no_draws(factor, prior):
    wide = prior.expand(torch.Size((3,)))
    value = factor.sample()
    assert (wide.log_prob(value) == 0).all()
    assert wide.log_prob(value).shape == (3,)
    assert wide.to_event(1).log_prob(value).shape == ()
    for draw in (wide.sample, wide.rsample, wide):
        with pytest.raises(NotImplementedError, match=f"{type(prior).__name__} has no samples"):
            draw()


@pytest.mark.parametrize(
    "factor", [NORMAL, dist.Beta(2.0, 3.0), dist.Categorical(torch.ones(2)), dist.Normal(0.0, 1.0)]
)
def test_dispatch_is_the_same_for_all_factors(factor):
    # A warning, such as that of an ambiguous dispatch, is an error in this suite.
    torch.testing.assert_close(kl_divergence(factor, Flat()), -factor.entropy())


@pytest.mark.parametrize(
    "prior", [NormalJeffreys(), NonzeroPenalty(1.0), InformationBottleneckPrior(1.0)]
)
@pytest.mark.parametrize(
    "factor",
    [
        dist.Gamma(1.0, 1.0),
        dist.Delta(torch.zeros(2)),
        NORMAL.to_event(1),
        dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
        dist.Normal(0.0, 1.0).mask(False),
    ],
)
def test_refuses_unknown_factors_loudly(factor, prior):
    # A NotImplementedError would let Pyro fall back to draws, and drop the prior in silence.
    with pytest.raises(ConfigError, match=f"{type(prior).__name__}.*got {type(factor).__name__}"):
        kl_divergence(factor, prior)


def test_serves_as_prior_in_an_elbo():
    rate, log_alpha = 0.7, torch.tensor([-1.0, 2.0], requires_grad=True)

    def model():
        prior = NonzeroPenalty(rate).expand(torch.Size((2,)))
        pyro.sample("gate", prior.to_event(1))

    def guide():
        pyro.sample("gate", HardConcrete(log_alpha).to_event(1))

    loss = TraceMeanField_ELBO().differentiable_loss(model, guide)
    torch.testing.assert_close(loss, rate * HardConcrete(log_alpha).probability_nonzero.sum())


def test_normal_jeffreys_is_the_divergence_within_a_hundredth():
    # E log|z| by quadrature, less its value at mean 0, which is the least divergence.
    least = -(math.log(2) + 0.5772156649015329) / 2
    for mean in (0.0, 0.05, 0.3, 1.0, 2.0, 5.0, 8.0, 30.0, 1000.0):

        def integrand(z, mean=mean):
            return stats.norm.pdf(z - mean) * math.log(abs(z))

        ends = sorted({mean - 12, mean + 12, *([0.0] if mean < 12 else []), mean})
        exact = sum(integrate.quad(integrand, a, b)[0] for a, b in itertools.pairwise(ends))
        factor = dist.Normal(double(3 * mean), double(3.0))
        kl = kl_divergence(factor, NormalJeffreys()).item()
        assert kl == pytest.approx(exact - least, abs=0.01)


def test_normal_jeffreys_is_the_published_formula():
    log_alpha = torch.linspace(-12, 12, 49, dtype=torch.double)
    published = (
        0.63576 * torch.sigmoid(1.87320 + 1.48695 * log_alpha)
        - torch.log1p((-log_alpha).exp()) / 2
        - 0.63576
    )
    factor = dist.Normal(double(-2.0), 2 * (log_alpha / 2).exp())
    torch.testing.assert_close(kl_divergence(factor, NormalJeffreys()), -published)


def test_nonzero_penalty_prices_probabilities():
    torch.testing.assert_close(
        kl_divergence(GATE, NonzeroPenalty(2.0)), 2 * (1 - GATE.cdf(double(0.0)))
    )
    torch.testing.assert_close(kl_divergence(SPIKE, NonzeroPenalty(2.0)), 2 * SPIKE.probs)


def test_information_bottleneck_is_the_divergence_from_the_best_prior():
    best = dist.Normal(0.0, (NORMAL.loc**2 + NORMAL.scale**2).sqrt())
    torch.testing.assert_close(
        kl_divergence(NORMAL, InformationBottleneckPrior(2.5)), 2.5 * kl_divergence(NORMAL, best)
    )


@pytest.mark.parametrize("prior", [NormalJeffreys(), InformationBottleneckPrior(1.0)])
def test_normal_factors_stay_finite(prior):
    loc = torch.tensor([0.0, 1e-30, -1e-10, 1.0, 1e10]).repeat_interleave(4).requires_grad_()
    scale = torch.tensor([math.exp(-20), 1e-3, 1.0, math.exp(20)]).repeat(5).requires_grad_()
    kl = kl_divergence(dist.Normal(loc, scale), prior)
    gradients = torch.autograd.grad(kl.sum(), [loc, scale])
    assert kl.dtype == torch.float32
    assert all(part.isfinite().all() for part in (kl, *gradients))
    assert (kl >= 0).all()


@pytest.mark.parametrize("make", [NonzeroPenalty, InformationBottleneckPrior])
def test_refuses_negative_prices(make):
    with pytest.raises(ValueError, match="nonneg|rate|strength"):
        make(torch.tensor([1.0, -1.0]))
