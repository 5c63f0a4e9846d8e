"""Registered divergences against draws, finite differences and quadrature."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats
from torch.distributions import kl_divergence

from bayesprune.distributions import (
    Concrete,
    LogGamma,
    LogUniform,
    TruncatedLogNormal,
    UniformCosine,
    VonMisesFisherCosine,
)

SIZE = 4
LOC = torch.tensor([0.3, -2.0, 1.0, 0.1], dtype=torch.double)
SCALE = torch.tensor([0.2, 1.5, 0.4, 0.9], dtype=torch.double)
TRIL = torch.diag(SCALE) + 0.3 * torch.ones(SIZE, SIZE, dtype=torch.double).tril(-1)
PRIOR = LogGamma(torch.tensor([0.1, 0.5, 2.0, 1.0], dtype=torch.double)).to_event(1)

FACTORS = {
    "diagonal": lambda loc: dist.Normal(loc, SCALE).to_event(1),
    "low rank": lambda loc: dist.LowRankMultivariateNormal(loc, TRIL[:, :2], SCALE**2),
    "full": lambda loc: dist.MultivariateNormal(loc, scale_tril=TRIL),
}
PARTS = pytest.mark.parametrize("factor", FACTORS.values(), ids=FACTORS)


@PARTS
def test_equals_the_average_over_draws(factor):
    q = factor(LOC)
    draws = q.sample((200_000,))
    ratio = q.log_prob(draws) - PRIOR.log_prob(draws)
    error = ratio.std() / math.sqrt(len(ratio))
    assert abs(ratio.mean() - kl_divergence(q, PRIOR)) < 5 * error


@PARTS
def test_gradient(factor):
    loc = LOC.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda loc: kl_divergence(factor(loc), PRIOR), loc)


@PARTS
def test_other_priors_stay_unknown(factor):
    unknown = dist.StudentT(torch.full((SIZE,), 3.0)).to_event(1)
    with pytest.raises(NotImplementedError):
        kl_divergence(factor(LOC), unknown)


def test_bounds_the_divergence_between_shares():
    # Two shares: the log odds are normal, and the divergence from the beta prior an integral.
    loc, scale, a = np.array([0.4, -0.5]), np.array([0.3, 0.6]), 0.3
    odds = stats.norm(loc[0] - loc[1], np.hypot(*scale))

    def integrand(t):
        log_prior = stats.beta(a, a).logpdf(1 / (1 + np.exp(-t)))
        jacobian = -t - 2 * np.log1p(np.exp(-t))
        return odds.pdf(t) * (odds.logpdf(t) - log_prior - jacobian)

    exact, _ = integrate.quad(integrand, -12, 12)
    q = dist.Normal(torch.tensor(loc), torch.tensor(scale)).to_event(1)
    prior = LogGamma(torch.full((2,), a, dtype=torch.double)).to_event(1)
    assert 0 < exact < kl_divergence(q, prior).item()


def double(*values):
    return torch.tensor(values, dtype=torch.double)


LOG_NORMAL = {"loc": double(0.3, -2.0, 1.0), "scale": double(0.2, 1.0, 0.6)}
SHAPE, RATE = double(0.5, 2.0, 1.3), double(0.7, 3.0, 10.0)
PAIRS = {
    "log-normal, gamma": (dist.LogNormal, LOG_NORMAL, dist.Gamma(SHAPE, RATE)),
    "log-normal, inverse gamma": (dist.LogNormal, LOG_NORMAL, dist.InverseGamma(SHAPE, RATE)),
    "log-normal, log-normal": (dist.LogNormal, LOG_NORMAL, dist.LogNormal(SHAPE, RATE)),
    "truncated log-normal, log-uniform": (
        TruncatedLogNormal,
        {"loc": double(0.0, -4.0, -25.0), "scale": double(0.01, 2.0, 3.0)},
        LogUniform(-20.0, 0.0),
    ),
    "truncated log-normal, wider log-uniform": (
        TruncatedLogNormal,
        {"loc": double(0.0, -4.0, -25.0), "scale": double(0.01, 2.0, 3.0)},
        LogUniform(-30.0, 1.0),
    ),
    "cosine, uniform": (
        lambda concentration: VonMisesFisherCosine(double(2, 25, 400), concentration),
        {"concentration": double(2.0, 10.0, 300.0)},
        UniformCosine(double(2, 25, 400)),
    ),
    "cosine, cosine": (
        lambda concentration: VonMisesFisherCosine(double(2, 25, 400), concentration),
        {"concentration": double(2.0, 10.0, 300.0)},
        VonMisesFisherCosine(double(2, 25, 400), double(1.0, 15.0, 100.0)),
    ),
}
EACH_PAIR = pytest.mark.parametrize(("make", "parameters", "p"), PAIRS.values(), ids=PAIRS)


@EACH_PAIR
def test_each_pair_equals_the_average_over_draws(make, parameters, p):
    q = make(**parameters)
    draws = q.sample((100_000,))
    ratio = q.log_prob(draws) - p.log_prob(draws)
    error = ratio.std(0) / math.sqrt(len(ratio))
    assert ((ratio.mean(0) - kl_divergence(q, p)).abs() < 5 * error + 1e-12).all()


@EACH_PAIR
def test_each_pair_has_gradients_and_events(make, parameters, p):
    arguments = tuple(value.clone().requires_grad_() for value in parameters.values())

    def divergence(*values):
        return kl_divergence(make(**dict(zip(parameters, values, strict=True))), p)

    assert torch.autograd.gradcheck(divergence, arguments, eps=1e-5, atol=1e-6, rtol=1e-4)
    q = make(**parameters)
    joint = kl_divergence(q.to_event(1), p.expand(q.batch_shape).to_event(1))
    torch.testing.assert_close(joint, kl_divergence(q, p).sum())


def test_horseshoe_scales_as_published():
    # Gamma(1/2, scale k^2) and InverseGamma(1/2, 1), the parts of a half-Cauchy scale.
    mu, variance, k = double(-3.0, 0.5), double(0.4, 2.0), 0.03
    q = dist.LogNormal(mu, variance.sqrt())
    entropy = (variance.log() + 1 + math.log(2)) / 2
    gamma = math.log(k) + (mu + variance / 2).exp() / k**2 - mu / 2 - entropy
    inverse = (-mu + variance / 2).exp() + mu / 2 - entropy
    half = double(0.5)
    torch.testing.assert_close(kl_divergence(q, dist.Gamma(half, half.new_tensor(k**-2))), gamma)
    torch.testing.assert_close(kl_divergence(q, dist.InverseGamma(half, 2 * half)), inverse)


def test_half_cauchy_is_the_root_of_gamma_times_inverse_gamma():
    k, draws = 0.7, 20_000
    gamma = dist.Gamma(double(0.5), double(k**-2)).sample((draws,))
    inverse = dist.InverseGamma(double(0.5), double(1.0)).sample((draws,))
    scale = (gamma * inverse).sqrt().squeeze(-1)
    assert stats.kstest(scale.numpy(), stats.halfcauchy(scale=k).cdf).pvalue > 1e-6


def test_log_normal_divergences_are_finite_at_extreme_scales():
    # The horseshoe's global scale, 1e-5, gives a gamma of rate 1e10; single precision.
    loc = torch.tensor([-60.0, -20.0, 0.0, 5.0]).repeat_interleave(3).requires_grad_()
    scale = torch.tensor([math.exp(-20), 1.0, 7.0]).repeat(4).requires_grad_()
    q = dist.LogNormal(loc, scale)
    half = torch.tensor(0.5)
    for p in (dist.Gamma(half, torch.tensor(1e10)), dist.InverseGamma(half, torch.tensor(1.0))):
        kl = kl_divergence(q, p)
        gradients = torch.autograd.grad(kl.sum(), [loc, scale])
        assert all(part.isfinite().all() for part in (kl, *gradients))
        assert (kl > 0).all()


def test_truncated_log_normal_leaves_a_narrower_log_uniform():
    q = TruncatedLogNormal(double(-1.0), double(1.0), -20.0, 0.0)
    assert kl_divergence(q, LogUniform(-10.0, 0.0)).item() == math.inf
    # With scale the whole interval is covered, and nothing is learnt.
    flat = TruncatedLogNormal(double(-10.0), double(math.exp(10)))
    assert kl_divergence(flat, LogUniform(-20.0, 0.0)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("scale", [math.exp(-20), math.exp(-5), 1.0, math.exp(5)])
def test_truncated_log_normal_divergence_in_single_precision(scale):
    loc = torch.tensor([-60.0, -20.0, -3.0, 0.0, 5.0], requires_grad=True)
    spread = torch.full((5,), scale, requires_grad=True)
    kl = kl_divergence(TruncatedLogNormal(loc, spread), LogUniform(-20.0, 0.0))
    gradients = torch.autograd.grad(kl.sum(), [loc, spread])
    assert all(part.isfinite().all() for part in (kl, *gradients))
    assert (kl > -1e-6).all()


@pytest.mark.parametrize("bernoulli", [dist.Bernoulli, torch.distributions.Bernoulli])
def test_concrete_diverges_like_the_bernoulli_it_relaxes(bernoulli):
    logits = double(-60.0, -2.0, 0.4, 3.0, 60.0).requires_grad_()
    prior = bernoulli(probs=double(0.2))
    kl = kl_divergence(Concrete(logits, 0.3), prior)
    exact = kl_divergence(dist.Bernoulli(logits=logits), dist.Bernoulli(prior.probs.expand(5)))
    torch.testing.assert_close(kl, exact)
    (gradient,) = torch.autograd.grad(kl.sum(), logits)
    keep = logits.detach().sigmoid()
    slope = keep * (1 - keep) * (logits.detach() - prior.logits)
    torch.testing.assert_close(gradient, slope)
