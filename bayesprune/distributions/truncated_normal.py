"""The normal distribution restricted to an interval."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from pyro.distributions import constraints
from torch import Size, Tensor
from torch.types import _size

from bayesprune.distributions._univariate import Univariate, gauss_legendre, with_slopes

_NATS = 40.0  # how far below its peak a density is followed: exp(-40) is below rounding
_NODES = 64
_TAIL = 3.0  # bounds further than this on the far side of the mode are treated as a tail
_NEWTON_STEPS = 8


class Quadrature(NamedTuple):
    """Nodes ``peak + offset`` in the last dimension, and the logarithms of their probabilities.

    `log_total` is the logarithm of the integral of the density relative to its peak.
    """

    peak: Tensor
    offset: Tensor
    log_mass: Tensor
    entropy: Tensor
    log_total: Tensor


class TruncatedNormal(Univariate):
    r"""Distribution of :math:`u \sim N(\mu, \sigma^2)` given :math:`a \le u \le b`.

    The mode of the untruncated normal may lie outside the interval, at any distance: values and
    gradients are computed relative to the peak of the density, in double precision.

    Parameters
    ----------
    loc, scale : Tensor or float
        Mean and standard deviation before truncation.
    low, high : Tensor or float
        The interval; constants, to which no gradient flows.
    """

    arg_constraints: dict[str, Any] = {  # type: ignore[assignment]
        "loc": constraints.real,
        "scale": constraints.positive,
        "low": constraints.real,
        "high": constraints.real,
    }
    has_rsample = True
    loc: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        loc: Tensor | float,
        scale: Tensor | float,
        low: Tensor | float,
        high: Tensor | float,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(validate_args, loc=loc, scale=scale, low=low, high=high)
        if self._validate_args and not (self.low < self.high).all():
            raise ValueError(f"{type(self).__name__}: expected low < high, got {low} and {high}")

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> Any:  # type: ignore[override]
        return constraints.interval(self.low, self.high)

    def rsample(self, sample_shape: _size = Size()) -> Tensor:
        """Draw with exact pathwise gradients; shape ``sample_shape + batch_shape``."""
        shape = self._extended_shape(sample_shape)
        return self.icdf(torch.rand(shape, dtype=torch.double, device=self.loc.device))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        rule = self.quadrature()
        loc, scale, _, _ = self._double()
        log_density = _relative_log_density(value.double() - rule.peak, rule.peak - loc, scale)
        return (log_density - rule.log_total).to(self.loc.dtype)

    def cdf(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        _, scale, low, high = self._double()
        value = value.double()
        with torch.no_grad():
            flipped, alpha, width = self._standard()
            distance = torch.where(flipped, high - value, value - low) / scale
            centre = (torch.special.ndtr(alpha + distance) - torch.special.ndtr(alpha)) / (
                torch.special.ndtr(alpha + width) - torch.special.ndtr(alpha)
            )
            tail = _log_survival(alpha, distance).expm1() / _log_survival(alpha, width).expm1()
            cdf = torch.where(alpha > _TAIL, tail, centre).clamp(0, 1)
            cdf = torch.where(flipped, 1 - cdf, cdf)
            density = self.log_prob(value).double().exp()
            by_loc, by_scale = self._slopes(value, cdf)
        cdf = with_slopes(
            cdf, (value, density), (self.loc, -density * by_loc), (self.scale, -density * by_scale)
        )
        return cdf.to(self.loc.dtype)

    def icdf(self, value: Tensor) -> Tensor:
        loc, scale, low, high = self._double()
        with torch.no_grad():
            value = value.double()
            flipped, alpha, width = self._standard()
            share = torch.where(flipped, 1 - value, value)
            distance = _centre(share, alpha, width)
            far = alpha > _TAIL
            if far.any():
                distance = torch.where(far, _tail(share, alpha, width), distance)
            distance = distance.clamp(torch.zeros_like(width), width)
            quantile = torch.where(flipped, high - scale * distance, low + scale * distance)
            by_loc, by_scale = self._slopes(quantile, value)
        quantile = with_slopes(quantile, (loc, by_loc), (scale, by_scale)).to(self.loc.dtype)
        return quantile.clamp(self.low, self.high)

    @property
    def mean(self) -> Tensor:
        rule = self.quadrature()
        return (rule.peak + (rule.log_mass.exp() * rule.offset).sum(-1)).to(self.loc.dtype)

    @property
    def variance(self) -> Tensor:
        rule = self.quadrature()
        mass = rule.log_mass.exp()
        deviation = rule.offset - (mass * rule.offset).sum(-1, keepdim=True)
        return (mass * deviation**2).sum(-1).to(self.loc.dtype)

    def entropy(self) -> Tensor:
        """Differential entropy in nats."""
        return self.quadrature().entropy.to(self.loc.dtype)

    def quadrature(self, tilts: int = 0) -> Quadrature:
        r"""Gauss–Legendre rule for expectations of :math:`f(u)\, e^{ku}`, k up to `tilts`.

        Sums over its nodes have positive terms: nothing cancels, however small the variance.
        """
        loc, scale, low, high = self._double()
        with torch.no_grad():
            peak = loc.clamp(low, high)
            edges = []
            for tilt in range(tilts + 1):  # exp(ku) moves the mode by k sigma^2
                mode = loc + tilt * scale**2
                top = mode.clamp(low, high)
                for side in (-1, 1):
                    # Where the density has fallen by `_NATS`; faster the further off the mode is.
                    gap = (side * (top - mode)).clamp(min=0) / scale
                    reach = scale * (2 * _NATS / (gap + (gap**2 + 2 * _NATS).sqrt()))
                    edges.append((top - peak + side * reach).clamp(low - peak, high - peak))
            ends = torch.stack(edges, -1).sort(-1).values
            offset, weight = gauss_legendre(ends[..., :-1], ends[..., 1:], _NODES)
            offset, weight = offset.flatten(-2), weight.flatten(-2)
        log_density = _relative_log_density(offset, (peak - loc).unsqueeze(-1), scale.unsqueeze(-1))
        log_mass = log_density + weight.log()
        log_total = log_mass.logsumexp(-1)
        log_mass = log_mass - log_total.unsqueeze(-1)
        entropy = log_total - (log_mass.exp() * log_density).sum(-1)
        return Quadrature(peak, offset, log_mass, entropy, log_total)

    def _double(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.loc.double(), self.scale.double(), self.low.double(), self.high.double()

    def _standard(self) -> tuple[Tensor, Tensor, Tensor]:
        """Whether the mode lies above `high`; the standardised nearer bound; the width.

        Such distributions are mirrored, so that a bound far in a tail is the lower one.
        """
        loc, scale, low, high = self._double()
        flipped = loc > high
        return flipped, torch.where(flipped, loc - high, low - loc) / scale, (high - low) / scale

    def _slopes(self, value: Tensor, cdf: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives of a quantile with respect to `loc` and `scale`, at constant `cdf`."""
        loc, scale, low, high = self._double()
        x, alpha, beta = ((v - loc) / scale for v in (value, low, high))
        # (x^2 - bound^2) / 2 from the difference, which is exact next to the bound.
        at_low = ((value - low) / scale) * ((x + alpha) / 2) + torch.log1p(-cdf)
        at_high = ((value - high) / scale) * ((x + beta) / 2) + cdf.log()
        at_low, at_high = at_low.clamp(max=0).exp(), at_high.clamp(max=0).exp()
        return 1 - at_low - at_high, x - alpha * at_low - beta * at_high


def _relative_log_density(offset: Tensor, peak: Tensor, scale: Tensor) -> Tensor:
    """Log density of N(0, scale^2) at ``peak + offset`` less that at `peak`: nothing cancels."""
    z = offset / scale
    return -z * (peak / scale + z / 2)


def _scaled_survival(x: Tensor) -> Tensor:
    return torch.special.erfcx(x * math.sqrt(0.5))


def _log_survival(alpha: Tensor, distance: Tensor) -> Tensor:
    """Log P(X > alpha + distance | X > alpha) of a standard normal X; for alpha above `_TAIL`."""
    alpha = alpha.clamp(min=_TAIL)
    decay = distance * (alpha + distance / 2)
    return (_scaled_survival(alpha + distance) / _scaled_survival(alpha)).log() - decay


def _tail(share: Tensor, alpha: Tensor, width: Tensor) -> Tensor:
    """Distance from `alpha` of the quantile; Newton's method, monotone by convexity."""
    alpha = alpha.clamp(min=_TAIL)
    target = -torch.log1p(share * _log_survival(alpha, width).expm1())
    target = target.clamp(max=1e3)  # `share` of 1 and an unbounded tail: cut at `width` later
    distance = 2 * target / (alpha + (alpha**2 + 2 * target).sqrt())
    for _ in range(_NEWTON_STEPS):
        hazard = math.sqrt(2 / math.pi) / _scaled_survival(alpha + distance)
        distance = (distance + (_log_survival(alpha, distance) + target) / hazard).clamp(min=0)
    return distance


def _centre(share: Tensor, alpha: Tensor, width: Tensor) -> Tensor:
    ndtr, ndtri = torch.special.ndtr, torch.special.ndtri
    beta = alpha + width
    total = torch.where(alpha > 0, ndtr(-alpha) - ndtr(-beta), ndtr(beta) - ndtr(alpha))
    below, above = ndtr(alpha) + share * total, ndtr(-beta) + (1 - share) * total
    return torch.where(below < above, ndtri(below), -ndtri(above)) - alpha
