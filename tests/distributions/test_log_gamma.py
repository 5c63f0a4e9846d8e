"""Draws, density and moments of log-gamma variates, also where gamma variates underflow."""

import math

import pytest
import torch
from scipy import stats

from bayesprune.distributions import LogGamma

CONCENTRATIONS = [1e-6, 1e-3, 0.05, 0.5, 3.0, 200.0]
P_VALUE = 1e-6  # the rate of false alarms, were the seed not fixed


def double(value):
    return torch.tensor(value, dtype=torch.double)


def exact_cdf(concentration):
    def cdf(value):
        # SciPy's own is 0 where exp(value) underflows; there the first term of the series is exact.
        left = stats.loggamma.cdf(value, concentration)
        series = torch.as_tensor(concentration * value - math.lgamma(concentration + 1)).exp()
        return torch.where(torch.as_tensor(value) < -30, series, torch.as_tensor(left)).numpy()

    return cdf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("concentration", CONCENTRATIONS)
def test_draws_have_the_right_distribution(concentration, dtype):
    draws = LogGamma(torch.tensor(concentration, dtype=dtype)).sample(torch.Size((20_000,)))
    assert draws.dtype == dtype
    assert draws.isfinite().all()
    assert stats.kstest(draws.double().numpy(), exact_cdf(concentration)).pvalue > P_VALUE


@pytest.mark.parametrize("concentration", CONCENTRATIONS)
def test_density_and_moments_are_scipys(concentration):
    distribution = LogGamma(double(concentration))
    values = distribution.sample(torch.Size((100,)))
    expected = stats.loggamma.logpdf(values.numpy(), concentration)
    torch.testing.assert_close(distribution.log_prob(values), torch.as_tensor(expected))
    mean, variance = stats.loggamma.stats(concentration)
    assert distribution.mean.item() == pytest.approx(float(mean))
    assert distribution.variance.item() == pytest.approx(float(variance))


@pytest.mark.parametrize("concentration", [0.05, 1.0, 20.0])
def test_pathwise_gradient_of_the_mean_is_the_variance(concentration):
    # E[u] = digamma(a), so that the mean of du/da is trigamma(a).
    a = torch.full((100_000,), concentration, dtype=torch.double, requires_grad=True)
    LogGamma(a).rsample().sum().backward()
    error = a.grad.std() / math.sqrt(len(a))
    assert abs(a.grad.mean() - torch.polygamma(1, double(concentration))) < 5 * error


def test_softmax_is_dirichlet():
    concentration = [0.05, 0.4, 3.0]
    shares = LogGamma(double(concentration)).sample(torch.Size((20_000,))).softmax(-1)
    for a, share in zip(concentration, shares.unbind(1), strict=True):
        marginal = stats.beta(a, sum(concentration) - a)
        assert stats.kstest(share.numpy(), marginal.cdf).pvalue > P_VALUE


def test_expands_and_checks_its_argument():
    distribution = LogGamma(torch.ones(3)).expand([2, 3])
    assert distribution.batch_shape == (2, 3)
    assert distribution.rsample(torch.Size((4,))).shape == (4, 2, 3)
    with pytest.raises(ValueError, match="concentration"):
        LogGamma(torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="support"):
        LogGamma(torch.ones(1)).log_prob(torch.tensor([math.nan]))
