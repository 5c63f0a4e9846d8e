"""How far a random direction points along a given one."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from pyro.distributions import constraints
from torch import Size, Tensor
from torch.nn.functional import pad
from torch.types import _size

from bayesprune.distributions._univariate import Univariate, gauss_legendre, with_slopes
from bayesprune.distributions.bessel import growth

_NATS = 50.0  # how far below its peak a density is followed
_PANELS = 64
_NODES = 6  # per panel
_NEWTON_STEPS = 9


class VonMisesFisherCosine(Univariate):
    r"""Distribution of :math:`t = \langle v, \mu \rangle` for :math:`v \sim vMF(\mu, \kappa)`.

    On the unit sphere of d dimensions; the density is proportional to
    :math:`(1 - t^2)^{(d-3)/2} e^{\kappa t}` on [-1, 1]. The part of `v` perpendicular to the pole
    :math:`\mu` is uniform whatever :math:`\kappa`, so the divergence between two of these
    distributions is that between the distributions of the directions.

    The cdf and its inverse are found by quadrature in the angle; everything is computed in double
    precision. Draws with gradients are made by inversion, those without by rejection, which is
    faster.

    Parameters
    ----------
    dim : Tensor or float
        d, an integer of at least 2; a constant.
    concentration : Tensor or float
        :math:`\kappa`, not negative.

    References
    ----------
    Wood, "Simulation of the von Mises Fisher distribution", Communications in Statistics 1994
    (rejection).
    """

    arg_constraints: dict[str, Any] = {  # type: ignore[assignment]
        "dim": constraints.integer_interval(2, math.inf),
        "concentration": constraints.nonnegative,
    }
    support = constraints.interval(-1.0, 1.0)  # type: ignore[assignment]
    has_rsample = True
    dim: Tensor
    concentration: Tensor

    def __init__(
        self,
        dim: Tensor | float,
        concentration: Tensor | float,
        validate_args: bool | None = None,
    ) -> None:
        if isinstance(dim, Tensor) and isinstance(concentration, Tensor):
            dim = dim.to(concentration)
        super().__init__(validate_args, dim=dim, concentration=concentration)

    def rsample(self, sample_shape: _size = Size()) -> Tensor:
        """Draw with exact pathwise gradients; shape ``sample_shape + batch_shape``."""
        shape = self._extended_shape(sample_shape)
        return self.icdf(torch.rand(shape, dtype=torch.double, device=self.concentration.device))

    def sample(self, sample_shape: _size = Size()) -> Tensor:
        """Draw without gradients, by rejection; shape ``sample_shape + batch_shape``."""
        with torch.no_grad():
            shape = self._extended_shape(sample_shape)
            free, concentration = (
                value.double().expand(shape).flatten()
                for value in (self.dim - 1, self.concentration)
            )
            ratio = free / (2 * concentration + torch.hypot(2 * concentration, free))
            mode = (1 - ratio) / (1 + ratio)
            cosine = torch.empty_like(free)
            left = torch.arange(len(free), device=free.device)
            while len(left):
                n, k, b, top = (v[left] for v in (free, concentration, ratio, mode))
                share = torch.distributions.Beta(n / 2, n / 2, validate_args=False).sample()
                drawn = (1 - (1 + b) * share) / (1 - (1 - b) * share)
                log_odds = torch.log1p(-top * drawn) - torch.log1p(-(top**2))
                taken = k * (drawn - top) + n * log_odds >= torch.rand_like(drawn).log()
                cosine[left[taken]] = drawn[taken]
                left = left[~taken]
            return _inside(cosine.reshape(shape).to(self.concentration.dtype))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        order, value = self._order(), _inside(value).double()
        sphere = torch.lgamma(order + 0.5) - torch.lgamma(order + 1) + math.log(math.pi) / 2
        log_density = (order - 0.5) * torch.log1p(-(value**2)) + self.concentration * value
        return (log_density - sphere - self.log_mgf()).to(self.concentration.dtype)

    def cdf(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        with torch.no_grad():
            cdf, slope = self._table().cdf(value.double().clamp(-1, 1).arccos())
            density = self.log_prob(value).double().exp()
        cdf = with_slopes(cdf, (value, density), (self.concentration, -density * slope))
        return cdf.to(self.concentration.dtype)

    def icdf(self, value: Tensor) -> Tensor:
        with torch.no_grad():
            table = self._table()
            angle = table.quantile(1 - value.double())
            _, slope = table.cdf(angle)
        cosine = with_slopes(angle.cos(), (self.concentration, slope))
        return _inside(cosine.to(self.concentration.dtype))

    @property
    def mean(self) -> Tensor:
        cumulants = growth(self._order(), self.concentration)
        mean = with_slopes(cumulants.ratio, (self.concentration, cumulants.second))
        return mean.to(self.concentration.dtype)

    @property
    def variance(self) -> Tensor:
        cumulants = growth(self._order(), self.concentration)
        variance = with_slopes(cumulants.second, (self.concentration, cumulants.third))
        return variance.to(self.concentration.dtype)

    def log_mgf(self) -> Tensor:
        r"""Logarithm of the mean of :math:`e^{\kappa t}` over uniform directions; in doubles."""
        cumulants = growth(self._order(), self.concentration)
        return with_slopes(cumulants.log, (self.concentration, cumulants.ratio))

    def _order(self) -> Tensor:
        return self.dim.double() / 2 - 1

    def _table(self) -> _Table:
        return _Table.of(self._order(), self.concentration.double())


class UniformCosine(VonMisesFisherCosine):
    """Distribution of one coordinate of a uniform direction: no concentration at all.

    Parameters
    ----------
    dim : Tensor or float
        Dimensions of the space, an integer of at least 2.
    """

    def __init__(self, dim: Tensor | float, validate_args: bool | None = None) -> None:
        super().__init__(dim, 0.0, validate_args)


def _inside(cosine: Tensor) -> Tensor:
    """Keep off the ends, where the density may be infinite, by the rounding unit."""
    bound = 1 - torch.finfo(cosine.dtype).eps
    return cosine.clamp(-bound, bound)


def _log_ratio(angle: Tensor, reference: Tensor, order: Tensor, concentration: Tensor) -> Tensor:
    """Log density of the angle, less that at `reference`."""
    half_sum, half_difference = (angle + reference) / 2, (angle - reference) / 2
    cosines = -2 * half_sum.sin() * half_difference.sin()
    sines = torch.xlogy(2 * order, angle.sin() / reference.sin())
    return concentration * cosines + sines


def _range(order: Tensor, concentration: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Peak of the angle's density; angles within which it is `_NATS` from that, by bisection."""
    root = order + torch.hypot(order, concentration)
    floor = torch.finfo(torch.double).tiny
    cosine = concentration / root.clamp(min=floor)
    squared_sine = torch.where(root > 0, 2 * order / root.clamp(min=floor), 1.0)
    peak = torch.atan2(squared_sine.sqrt(), cosine).clamp(min=1e-12)
    ends = []
    for end in (torch.zeros_like(peak), torch.full_like(peak, math.pi)):
        inside, outside = peak, end
        for _ in range(48):
            middle = (inside + outside) / 2
            near = _log_ratio(middle, peak, order, concentration) > -_NATS
            inside, outside = torch.where(near, middle, inside), torch.where(near, outside, middle)
        ends.append(outside)
    return peak, ends[0], ends[1]


class _Table(NamedTuple):
    """Integrals of the angle's density, not normalised, up to and from the ends of equal panels.

    The last dimension holds the ends; inside a panel a short Gauss-Legendre rule does the rest.
    """

    order: Tensor
    concentration: Tensor
    mean: Tensor  # of the cosine
    peak: Tensor
    low: Tensor
    width: Tensor  # of a panel
    mass_below: Tensor
    mass_above: Tensor
    moment_below: Tensor  # of cosine - mean
    moment_above: Tensor

    @classmethod
    def of(cls, order: Tensor, concentration: Tensor) -> _Table:
        mean = growth(order, concentration).ratio
        peak, low, high = _range(order, concentration)
        width = (high - low) / _PANELS
        ends = torch.arange(_PANELS + 1, dtype=torch.double, device=low.device)
        ends = low.unsqueeze(-1) + width.unsqueeze(-1) * ends
        nodes, weights = gauss_legendre(ends[..., :-1], ends[..., 1:], _NODES)
        parameters = (v[..., None, None] for v in (peak, order, concentration))
        mass = weights * _log_ratio(nodes, *parameters).exp()
        moment = mass * (nodes.cos() - mean[..., None, None])
        below_and_above = (
            cumulative
            for part in (mass.sum(-1), moment.sum(-1))
            for cumulative in (
                pad(part.cumsum(-1), (1, 0)),
                pad(part.flip(-1).cumsum(-1), (1, 0)).flip(-1),
            )
        )
        return cls(order, concentration, mean, peak, low, width, *below_and_above)

    def cdf(self, angle: Tensor) -> tuple[Tensor, Tensor]:
        """Of the cosine of `angle`; and how that moves with the concentration at constant cdf.

        The latter is minus the derivative of the cdf over the density: an integral of cosine - mean
        over whichever side of `angle` has one sign.
        """
        high = self.low + _PANELS * self.width
        angle = torch.minimum(torch.maximum(angle, self.low), high)
        panel = ((angle - self.low) / self.width).floor().clamp(0, _PANELS - 1).long()
        upper = angle.cos() < self.mean
        start = self.low + self.width * (panel + upper)
        mass, moment = self._panel(start, angle)
        mass = torch.where(
            upper, _at(self.mass_above, panel + 1) - mass, _at(self.mass_below, panel) + mass
        )
        moment = torch.where(
            upper,
            -_at(self.moment_above, panel + 1) + moment,
            _at(self.moment_below, panel) + moment,
        )
        share = (mass / self.mass_below[..., -1]).clamp(0, 1)
        density = _log_ratio(angle, self.peak, self.order, self.concentration).exp()
        slope = angle.sin() * moment / density.clamp(min=torch.finfo(torch.double).tiny)
        return torch.where(upper, share, 1 - share), slope

    def quantile(self, share: Tensor) -> Tensor:
        """The angle below which `share` of the mass lies: Newton's method, kept in a bracket."""
        target = share * self.mass_below[..., -1]
        # One row per distribution, the way that searchsorted wants it.
        rows = target.reshape(-1, self.peak.numel()).T.contiguous()
        ends = self.mass_below.reshape(-1, _PANELS + 1)[:, 1:].contiguous()
        panel = torch.searchsorted(ends, rows).T.reshape(target.shape).clamp(max=_PANELS - 1)
        start = below = self.low + self.width * panel
        above = below + self.width
        mass, total = _at(self.mass_below, panel), _at(self.mass_below, panel + 1)
        angle = below + self.width * ((target - mass) / (total - mass)).clamp(0, 1)
        for _ in range(_NEWTON_STEPS):
            excess = mass + self._panel(start, angle)[0] - target
            below = torch.where(excess > 0, below, angle)
            above = torch.where(excess > 0, angle, above)
            log_density = _log_ratio(angle, self.peak, self.order, self.concentration)
            newton = angle - excess * (-log_density).exp()
            inside = (newton >= below) & (newton <= above)
            angle = torch.where(inside, newton, (below + above) / 2)
        return angle

    def _panel(self, start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
        """Mass and moment between two angles of one panel."""
        nodes, weights = gauss_legendre(start, stop, _NODES)
        peak, order, concentration, mean = (
            v.unsqueeze(-1) for v in (self.peak, self.order, self.concentration, self.mean)
        )
        mass = weights * _log_ratio(nodes, peak, order, concentration).exp()
        return mass.sum(-1), (mass * (nodes.cos() - mean)).sum(-1)


def _at(ends: Tensor, index: Tensor) -> Tensor:
    return ends.expand(*index.shape, -1).gather(-1, index.unsqueeze(-1)).squeeze(-1)
