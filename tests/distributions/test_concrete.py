"""Relaxed Bernoulli variables against PyTorch's, and their moments against quadrature."""

import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, special

from bayesprune.distributions import Concrete


def double(*values):
    return torch.tensor(values, dtype=torch.double)


def test_is_pytorchs_relaxed_bernoulli():
    logits, temperature = double(-2.0, 0.3, 1.0), double(0.5)
    q = Concrete(logits, temperature)
    value = q.sample(torch.Size((50,)))
    theirs = dist.RelaxedBernoulli(temperature, logits=logits).log_prob(value)
    torch.testing.assert_close(q.log_prob(value), theirs)
    torch.testing.assert_close(1 - q.cdf(double(0.5)), logits.sigmoid())


def moment(function, logits, temperature):
    """Mean of a function of logit z over the logistic noise, piece by piece around the steps."""

    def integrand(noise):
        density = special.expit(noise) * special.expit(-noise)
        return density * function((noise + logits) / temperature)

    centres = {-40.0, 40.0, 0.0} | ({-logits} if abs(logits) < 40 else set())
    ends = sorted({centre + shift for centre in centres for shift in (-5, -0.5, 0, 0.5, 5)})
    accuracy = {"epsabs": 1e-15, "epsrel": 1e-12, "limit": 100}
    return sum(integrate.quad(integrand, a, b, **accuracy)[0] for a, b in itertools.pairwise(ends))


@pytest.mark.parametrize("temperature", [0.01, 0.1, 0.5, 0.999, 1.0, 1.001, 2.0, 20.0])
@pytest.mark.parametrize("logits", [-50.0, -6.0, 0.0, 1.3, 50.0])
def test_moments_to_twelve_digits(temperature, logits):
    q = Concrete(double(logits), double(temperature))
    mean = moment(special.expit, logits, temperature)
    variance = moment(lambda y: (special.expit(y) - mean) ** 2, logits, temperature)
    assert q.mean.item() == pytest.approx(mean, abs=1e-12)
    assert q.variance.item() == pytest.approx(variance, abs=1e-12)


def test_cold_variables_are_bernoulli():
    logits = double(-3.0, 0.0, 2.0)
    q = Concrete(logits, 1e-4)
    probability = logits.sigmoid()
    torch.testing.assert_close(q.mean, probability, rtol=1e-6, atol=0)
    torch.testing.assert_close(q.variance, probability * (1 - probability), rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_stay_off_the_ends(dtype):
    q = Concrete(torch.tensor([-60.0, 60.0], dtype=dtype), 0.1)
    draws = q.sample(torch.Size((100,)))
    assert ((draws > 0) & (draws < 1)).all()
    assert math.isfinite(q.log_prob(draws).sum().item())
