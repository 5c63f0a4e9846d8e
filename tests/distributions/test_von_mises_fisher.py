"""The cosine of a von Mises-Fisher direction: other laws it is known to equal."""

import math

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch.distributions import kl_divergence

from bayesprune.distributions import UniformCosine, VonMisesFisherCosine


def double(*values):
    return torch.tensor(values, dtype=torch.double)


def test_two_dimensions_are_scipys_von_mises():
    q = VonMisesFisherCosine(double(2.0), double(3.0))
    angle = np.linspace(0.1, 3.0, 9)
    cosine = torch.as_tensor(np.cos(angle))
    exact = stats.vonmises(3.0)
    np.testing.assert_allclose(q.cdf(cosine), 2 * exact.sf(angle), rtol=1e-9)
    np.testing.assert_allclose(q.log_prob(cosine).exp(), 2 * exact.pdf(angle) / np.sin(angle))


@pytest.mark.parametrize("concentration", [1e-6, 0.4, 3.0, 500.0])
def test_three_dimensions_are_an_exponential(concentration):
    q = VonMisesFisherCosine(double(3.0), double(concentration))
    share = np.linspace(0.02, 0.98, 7)
    # F(t) = (e^{k t} - e^{-k}) / (e^k - e^{-k})
    exact = 1 + np.log1p((share - 1) * -np.expm1(-2 * concentration)) / concentration
    np.testing.assert_allclose(q.icdf(torch.as_tensor(share)), exact, rtol=1e-7)
    mean = 1 / math.tanh(concentration) - 1 / concentration if concentration > 0.1 else 0.0
    assert q.mean.item() == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("dim", [2.0, 3.0, 10.0, 4608.0])
def test_uniform_directions_are_beta(dim):
    q, exact = UniformCosine(double(dim)), stats.beta(dim / 2 - 0.5, dim / 2 - 0.5, -1, 2)
    share = np.array([0.001, 0.3, 0.5, 0.9])
    np.testing.assert_allclose(
        q.icdf(torch.as_tensor(share)), exact.ppf(share), rtol=1e-8, atol=1e-12
    )
    value = torch.as_tensor(exact.ppf(share))
    np.testing.assert_allclose(q.log_prob(value), exact.logpdf(value), rtol=1e-9)
    np.testing.assert_allclose(q.cdf(value), share, rtol=1e-9)
    assert q.variance.item() == pytest.approx(1 / dim)


def test_density_is_scipys_von_mises_fisher():
    # The density of a direction times the area of the sphere of its perpendicular part.
    for dim, concentration in ((4, 2.0), (10, 30.0), (40, 5.0)):
        pole = np.eye(dim)[0]
        t = np.linspace(-0.8, 0.9, 5)
        directions = np.zeros((5, dim))
        directions[:, 0], directions[:, 1] = t, np.sqrt(1 - t**2)
        log_area = math.log(2) + (dim - 1) / 2 * math.log(math.pi) - special.gammaln((dim - 1) / 2)
        exact = stats.vonmises_fisher(pole, concentration).logpdf(directions)
        exact = exact + log_area + (dim - 3) / 2 * np.log1p(-(t**2))
        q = VonMisesFisherCosine(double(dim), double(concentration))
        np.testing.assert_allclose(q.log_prob(torch.as_tensor(t)), exact, rtol=1e-9)


def test_divergence_is_that_of_directions():
    # kappa A_d + ln C_d + ln(area of the sphere), in elementary functions for d = 3.
    for kappa in (0.3, 2.0, 50.0):
        exact = kappa / math.tanh(kappa) - 1 + math.log(kappa / math.sinh(kappa))
        q = VonMisesFisherCosine(double(3.0), double(kappa))
        assert kl_divergence(q, UniformCosine(double(3.0))).item() == pytest.approx(
            exact, rel=1e-10
        )
    # and, at any d, minus SciPy's entropy plus the logarithm of the area
    for dim, kappa in ((5, 3.0), (40, 20.0)):
        entropy = stats.vonmises_fisher(np.eye(dim)[0], kappa).entropy()
        log_area = math.log(2) + dim / 2 * math.log(math.pi) - special.gammaln(dim / 2)
        q = VonMisesFisherCosine(double(dim), double(kappa))
        kl = kl_divergence(q, UniformCosine(double(dim)))
        assert kl.item() == pytest.approx(log_area - entropy, rel=1e-9)


def test_divergence_grows_with_concentration_from_zero():
    for dim in (2.0, 25.0, 2e5):
        concentration = torch.logspace(-8, 8, 60, dtype=torch.double).requires_grad_()
        kl = kl_divergence(
            VonMisesFisherCosine(double(dim), concentration), UniformCosine(double(dim))
        )
        (slope,) = torch.autograd.grad(kl.sum(), concentration)
        assert (kl > 0).all()
        assert (slope > 0).all()
        assert (kl[1:] > kl[:-1]).all()


def test_dimension_may_be_an_integer_tensor_and_must_be_one():
    q = VonMisesFisherCosine(torch.tensor([3, 30]), torch.tensor([1.0, 1.0]))
    assert q.mean.dtype == torch.float32
    for dim in (1.0, 2.5):
        with pytest.raises(ValueError, match="dim"):
            VonMisesFisherCosine(dim, 1.0)
    with pytest.raises(ValueError, match="equal dim"):
        kl_divergence(q, UniformCosine(double(3.0)))
