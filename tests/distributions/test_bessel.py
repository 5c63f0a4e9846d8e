"""Logarithms of Bessel functions and their derivatives against SciPy and 40 digits."""

import itertools

import mpmath
import numpy as np
import pytest
import torch
from scipy import special

from bayesprune.distributions import log_bessel_i
from bayesprune.distributions.bessel import growth

ORDERS = [0.0, 0.5, 1.0, 7.0, 24.0, 311.5, 1e5]
ARGUMENTS = [1e-8, 1e-3, 0.3, 5.0, 80.0, 1e4, 1e8]


def double(value):
    return torch.tensor(value, dtype=torch.double)


def test_equals_scipys_where_that_is_in_range():
    order, x = np.meshgrid(np.linspace(0, 60, 41), np.geomspace(1e-3, 1e4, 41))
    expected = np.log(special.ive(order, x)) + x
    mine = log_bessel_i(torch.as_tensor(order), torch.as_tensor(x)).numpy()
    np.testing.assert_allclose(mine, expected, rtol=1e-11, atol=1e-11)


# mpmath does not converge at the last pair.
@pytest.mark.parametrize(("order", "x"), list(itertools.product(ORDERS, ARGUMENTS))[:-1])
def test_forty_digits(order, x):
    with mpmath.workdps(40):
        here, above = mpmath.besseli(order, x), mpmath.besseli(order + 1, x)
        log, ratio = mpmath.log(here), above / here
        riccati = (2 * order + 1) / mpmath.mpf(x)
        second = 1 - ratio**2 - riccati * ratio
        third = -2 * ratio * second - riccati * (second - ratio / x)
        excess = log + mpmath.loggamma(order + 1) - order * mpmath.log(mpmath.mpf(x) / 2)
    scale = 1 + abs(float(mpmath.loggamma(order + 1)))  # of the largest term
    assert log_bessel_i(double(order), double(x)).item() == pytest.approx(
        float(log), rel=1e-12, abs=1e-14 * scale
    )
    computed = growth(double(order), double(x))
    expected = (excess, ratio, second)
    for mine, exact in zip(computed, expected, strict=False):
        assert mine.item() == pytest.approx(float(exact), rel=1e-11)
    assert computed.third.item() == pytest.approx(float(third), rel=1e-6)


def test_at_zero_there_is_no_growth():
    computed = growth(double([0.0, 0.5, 30.0]), double(0.0))
    for part in (computed.log, computed.ratio, computed.third):
        assert (part == 0).all()
    torch.testing.assert_close(computed.second, 1 / double([2.0, 3.0, 62.0]))


def test_gradient():
    order = double(ORDERS).unsqueeze(-1)
    x = double([1e-3, 0.3, 5.0, 80.0]).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: log_bessel_i(order, x), x, eps=1e-7, rtol=1e-4)
