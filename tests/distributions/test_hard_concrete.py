"""Hard concrete gates: published probabilities, exact moments, mass at the atoms."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special

from bayesprune.distributions import HardConcrete


def double(*values):
    return torch.tensor(values, dtype=torch.double)


def test_probability_nonzero_is_the_published_one():
    log_alpha = double(-3.0, 0.0, 2.0)
    q = HardConcrete(log_alpha)
    published = torch.sigmoid(log_alpha - 2 / 3 * math.log(0.1 / 1.1))
    torch.testing.assert_close(q.probability_nonzero, published, rtol=1e-6, atol=0)
    draws = q.sample(torch.Size((100_000,))) > 0
    error = (published * (1 - published) / len(draws)).sqrt()
    assert ((draws.double().mean(0) - published).abs() < 5 * error).all()


def test_atoms_are_weighed_by_log_prob():
    q = HardConcrete(double(-1.0, 0.5))
    draws = q.sample(torch.Size((100_000,)))
    for atom in (0.0, 1.0):
        mass = q.log_prob(double(atom)).exp()
        error = (mass * (1 - mass) / len(draws)).sqrt()
        assert (((draws == atom).double().mean(0) - mass).abs() < 5 * error).all()
    torch.testing.assert_close(q.cdf(double(0.0)), 1 - q.probability_nonzero)
    assert (q.cdf(double(1.0)) == 1).all()


@pytest.mark.parametrize("temperature", [0.05, 0.3, 2 / 3, 1.0, 3.0])
@pytest.mark.parametrize(("low", "high"), [(-0.1, 1.1), (-0.5, 1.01)])
def test_moments_to_ten_digits(temperature, low, high):
    for log_alpha in (-50.0, -8.0, -0.5, 0.0, 3.0, 9.0, 50.0):
        q = HardConcrete(double(log_alpha), temperature, low, high)

        def beyond(t, sign=1.0, log_alpha=log_alpha):  # P(z > t), or P(z < t) for a sign of -1
            return special.expit(
                sign * (log_alpha - temperature * math.log((t - low) / (high - t)))
            )

        def integral(function):
            return integrate.quad(function, 0, 1, epsabs=0, epsrel=1e-11, limit=200)[0]

        mean = integral(beyond)
        first, second = integral(beyond), integral(lambda t: 2 * t * beyond(t))
        if log_alpha > 0:  # of 1 - z
            first = integral(lambda t: beyond(t, -1.0))
            second = integral(lambda t: 2 * (1 - t) * beyond(t, -1.0))
        assert q.mean.item() == pytest.approx(mean, rel=1e-10, abs=1e-30)
        assert q.variance.item() == pytest.approx(second - first**2, rel=1e-8)


def test_draws_are_the_published_transformation():
    u = torch.linspace(0.01, 0.99, 15, dtype=torch.double)
    s = torch.sigmoid((u.log() - (1 - u).log() + 0.4) / (2 / 3))
    z = (s * 1.2 - 0.1).clamp(0, 1)
    np.testing.assert_allclose(HardConcrete(double(0.4)).icdf(u), z, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("change", [{"low": 0.1}, {"high": 1.0}, {"temperature": 0.0}])
def test_refuses_parameters_without_atoms(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        HardConcrete(0.0, **change)
