"""Registered divergences against draws, finite differences and quadrature."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats
from torch.distributions import kl_divergence

from bayesprune.distributions import LogGamma

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
