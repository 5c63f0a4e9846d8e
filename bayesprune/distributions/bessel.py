"""The modified Bessel function of the first kind, at any order, in logarithms."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bayesprune.distributions._univariate import with_slopes

_TERMS = 8  # of the expansion, which holds to 3e-14 from order `_SHIFT` on
_SHIFT = 25


def _log_debye_polynomials() -> list[np.polynomial.Polynomial]:
    r"""D_k with :math:`\sum_k D_k(p)/\nu^k = \log \sum_k u_k(p)/\nu^k`; u_k as in DLMF 10.41.9."""
    polynomial = np.polynomial.Polynomial
    p = polynomial([Fraction(0), Fraction(1)])
    one = polynomial([Fraction(1)])
    half, eighth = Fraction(1, 2), Fraction(1, 8)
    u, log_u = [one], [0 * one]
    for k in range(1, _TERMS + 1):
        tail = (1 - 5 * p**2) * u[-1]
        integral = polynomial([0, *(c / (i + 1) for i, c in enumerate(tail.coef))])
        u.append(half * p**2 * (1 - p**2) * u[-1].deriv() + eighth * integral)
        mixed = sum((j * log_u[j] * u[k - j] for j in range(1, k)), start=0 * one)
        log_u.append(u[k] - mixed / k)
    return [polynomial(d.coef.astype(float)) for d in log_u[1:]]


_DEBYE = _log_debye_polynomials()
# (D_k(p) - D_k(1)) / (p - 1), by synthetic division
_DEBYE_QUOTIENTS = [np.polynomial.Polynomial(np.cumsum(d.coef[:0:-1])[::-1]) for d in _DEBYE]


def _series(polynomials: list[np.polynomial.Polynomial], p: Tensor, order: Tensor) -> Tensor:
    """Sum over k of the k-th polynomial at `p` over ``order**k``."""
    total = torch.zeros_like(p)
    for polynomial in reversed(polynomials):
        value = torch.zeros_like(p)
        for coefficient in reversed(polynomial.coef):
            value = value * p + float(coefficient)
        total = (total + value) / order
    return total


class Growth(NamedTuple):
    r"""Logarithm of :math:`M(x) = \Gamma(\nu+1) (x/2)^{-\nu} I_\nu(x)` and three derivatives.

    M is the moment generating function of the first coordinate of a uniform direction in
    :math:`2\nu + 2` dimensions, so these are the cumulants of the tilted coordinate. The first
    derivative is the ratio :math:`I_{\nu+1}(x) / I_\nu(x)`.
    """

    log: Tensor
    ratio: Tensor
    second: Tensor
    third: Tensor


@torch.no_grad()
def growth(order: Tensor, x: Tensor) -> Growth:
    """Evaluate `Growth` in double precision, with relative accuracy from x = 0 on.

    The uniform expansion for large order is used at ``order + 25``; stable recurrences, whose terms
    are all positive, lead down from there.
    """
    order, x = torch.broadcast_tensors(order.double(), x.double())
    top = order + _SHIFT
    z = x / top
    s = torch.hypot(torch.ones_like(z), z)
    p, excess = 1 / s, z * (z / (1 + s))  # excess = s - 1
    first = [d.deriv() for d in _DEBYE]
    slope, bend = (_series(d, p, top) / top for d in (first, [d.deriv() for d in first]))
    log = (
        top * (excess - torch.log1p(excess / 2))
        - torch.log1p(excess) / 2
        - excess * p * _series(_DEBYE_QUOTIENTS, p, top)
    )
    ratio = z * (1 / (1 + s) - p**2 / (2 * top) - p**3 * slope)
    second = (
        p / (1 + s)
        - (p**2 / (2 * top) + p**3 * slope)
        + (p - p**3) * (p / top + 3 * p**2 * slope + p**3 * bend)
    ) / top
    # Bessel's equation; at x = 0, where it reads 0/0, the derivative vanishes.
    safe = x.clamp(min=1e-6)
    third = -2 * ratio * second - (2 * top + 1) * (second - ratio / safe) / safe
    for step in range(_SHIFT):
        # With D = 2 nu + x ratio at order nu, the ratio at order nu - 1 is x / D.
        nu2 = 2 * (top - step)
        denominator = nu2 + x * ratio
        log = log + torch.log1p(x * ratio / nu2)
        lower = x / denominator
        lower_second = (nu2 - x**2 * second) / denominator**2
        third = (
            -2 * lower_second * (ratio + x * second) - lower * (2 * second + x * third)
        ) / denominator
        ratio, second = lower, lower_second
    return Growth(log, ratio, second, third)


def log_bessel_i(order: Tensor, x: Tensor) -> Tensor:
    r"""Logarithm of :math:`I_\nu(x)`, in double precision, with a gradient in `x`.

    Parameters
    ----------
    order : Tensor
        :math:`\nu \ge 0`; no gradient flows to it.
    x : Tensor
        Positive; broadcasts with `order`.
    """
    order, x = order.double(), x.double()
    log, ratio, *_ = growth(order, x)
    log = log + order * (x / 2).log() - torch.lgamma(order + 1)
    return with_slopes(log, (x, ratio + order / x))
