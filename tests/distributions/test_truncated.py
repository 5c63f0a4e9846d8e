"""Truncated normal and log-normal against SciPy, published closed forms and high precision."""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import special, stats
from torch.distributions import kl_divergence

from bayesprune.distributions import LogUniform, TruncatedLogNormal, TruncatedNormal

LOW, HIGH = -20.0, 0.0
COMMON = [(-1.0, 0.5), (0.0, math.exp(-5)), (-4.0, 2.0), (2.0, 1.0), (-19.0, 3.0), (0.5, 20.0)]


def double(*values):
    return torch.tensor(values, dtype=torch.double)


def unzip(pairs):
    return (double(*column) for column in zip(*pairs, strict=True))


def test_equals_scipys_truncated_normal():
    loc, scale = unzip(COMMON)
    q = TruncatedNormal(loc, scale, LOW, HIGH)
    exact = stats.truncnorm(*((b - loc) / scale for b in (LOW, HIGH)), loc=loc, scale=scale)
    value = q.sample(torch.Size((200,)))
    for mine, scipys in (
        (q.log_prob(value), exact.logpdf(value)),
        (q.cdf(value), exact.cdf(value)),
        (q.icdf(double(0.1, 0.9).unsqueeze(-1)), exact.ppf([[0.1], [0.9]])),
        (q.mean, exact.mean()),
        (q.variance, exact.var()),
        (q.entropy(), exact.entropy()),
    ):
        torch.testing.assert_close(mine, torch.as_tensor(scipys), rtol=1e-7, atol=1e-9)


def test_moments_are_the_published_closed_forms():
    # Neklyudov et al. 2017: raw moments, where they do not cancel, by scaled complementary error
    # functions.
    def e(x):
        return special.erfcx(x / math.sqrt(2))

    for mu, sigma in COMMON:
        alpha, beta = (LOW - mu) / sigma, (HIGH - mu) / sigma
        z = special.ndtr(beta) - special.ndtr(alpha)
        at_high, at_low = math.exp(-(beta**2) / 2), math.exp(-(alpha**2) / 2)
        first, second = (
            (
                at_high * math.exp(k * HIGH) * e(k * sigma - beta)
                - at_low * math.exp(k * LOW) * e(k * sigma - alpha)
            )
            / (2 * z)
            for k in (1, 2)
        )
        q = TruncatedLogNormal(double(mu), double(sigma))
        variance = second - first**2
        assert q.mean.item() == pytest.approx(first, rel=1e-10)
        assert q.variance.item() == pytest.approx(variance, rel=1e-10 / variance)
        assert q.snr.item() == pytest.approx(first / math.sqrt(variance), rel=1e-10 / variance)

        def pdf(x):
            return stats.norm.pdf(x)

        divergence = (
            math.log(HIGH - LOW)
            - math.log(math.sqrt(2 * math.pi * math.e) * sigma * z)
            - (alpha * pdf(alpha) - beta * pdf(beta)) / (2 * z)
        )
        kl = kl_divergence(q, LogUniform(double(LOW), double(HIGH)))
        assert kl.item() == pytest.approx(divergence, rel=1e-9)


def test_start_of_training_as_published():
    # mu = 0, log sigma = -5: mean 0.9947, SNR about 247, 7.27 nats per gate.
    q = TruncatedLogNormal(0.0, math.exp(-5))
    assert q.mean.item() == pytest.approx(0.9947, abs=1e-4)
    assert q.snr.item() == pytest.approx(247, abs=1)
    assert kl_divergence(q, LogUniform(LOW, HIGH)).item() == pytest.approx(7.27, abs=0.01)


@pytest.mark.parametrize("mu", [-60, -20, -7, 0, 5])
@pytest.mark.parametrize("log_sigma", [-20, -8, 0, 1.4, 5])
def test_extremes_are_those_of_eighty_digits(mu, log_sigma):
    with mpmath.workdps(80):
        sigma = mpmath.mpf(math.exp(log_sigma))
        peak = mpmath.mpf(min(max(mu, LOW), HIGH))

        def density(offset):
            return mpmath.exp(-offset * (2 * (peak - mu) + offset) / (2 * sigma**2))

        width = sigma / (abs(peak - mu) / sigma + 1)  # the scale on which the density falls
        ends = {0, LOW - peak, HIGH - peak}
        ends |= {side * width * 2**k for k in range(8) for side in (-1, 1)}
        ends = sorted(end for end in ends if LOW - peak <= end <= HIGH - peak)

        def integral(function):
            return mpmath.quad(lambda t: density(t) * function(t), ends)

        total = integral(lambda t: 1)
        gain = integral(mpmath.expm1) / total
        ratio = integral(lambda t: (mpmath.expm1(t) - gain) ** 2) / total / (1 + gain) ** 2
        entropy = mpmath.log(total) - integral(lambda t: mpmath.log(density(t))) / total
        log_mean, snr = mpmath.log1p(gain) + peak, 1 / mpmath.sqrt(ratio)
    q = TruncatedLogNormal(double(mu), double(math.exp(log_sigma)))
    assert q.mean.log().item() == pytest.approx(float(log_mean), abs=1e-12)
    assert q.snr.item() == pytest.approx(float(snr), rel=1e-10)
    assert q.log.entropy().item() == pytest.approx(float(entropy), abs=1e-11)


def test_quantiles_far_outside_are_exponential():
    # 40 above a mode with scale 1e-4: the distance from the bound is exponential, rate 40 / 1e-8.
    q = TruncatedNormal(double(-60.0), double(1e-4), double(-20.0), double(0.0))
    mirrored = TruncatedNormal(double(60.0), double(1e-4), double(0.0), double(20.0))
    mean = 1e-8 / 40
    assert q.variance.sqrt().item() == pytest.approx(mean, rel=1e-6)
    # Distances of 1e-10 from a bound of 20 keep four digits.
    share = double(0.1, 0.5, 0.99)
    expected = -mean * np.log1p(-share.numpy())
    np.testing.assert_allclose(q.icdf(share) + 20, expected, rtol=1e-4)
    np.testing.assert_allclose(20 - mirrored.icdf(1 - share), expected, rtol=1e-4)
    np.testing.assert_allclose(q.cdf(q.icdf(share)), share, rtol=1e-4)


def test_log_uniform_is_scipys():
    p, exact = LogUniform(double(-3.0), double(0.5)), stats.loguniform(math.exp(-3), math.exp(0.5))
    value = p.sample(torch.Size((50,)))
    np.testing.assert_allclose(p.log_prob(value), exact.logpdf(value))
    np.testing.assert_allclose(p.cdf(value), exact.cdf(value))
    np.testing.assert_allclose([p.mean.item(), p.variance.item()], exact.stats())


def test_entropy_is_minus_the_mean_log_density():
    q = TruncatedLogNormal(double(-1.0, -22.0), double(0.7, 3.0))
    draws = -q.log_prob(q.sample(torch.Size((100_000,))))
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - q.entropy()).abs() < 5 * error).all()


@pytest.mark.parametrize("make", [TruncatedLogNormal, TruncatedNormal])
def test_refuses_an_empty_interval(make):
    with pytest.raises(ValueError, match="low < high"):
        make(0.0, 1.0, 2.0, 1.0)
    with pytest.raises(ValueError, match="low < high"):
        LogUniform(1.0, 1.0)
