"""Dirichlet switches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn.module import PyroParam
from scipy import special
from torch import Size, Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import register_kl
from torch.types import _size

from bayesprune.distributions import LogGamma
from bayesprune.errors import ConfigError
from bayesprune.switches._simplex import SimplexSwitch, Total
from bayesprune.switches._switch import Site, at_least


class _Shares(dist.Dirichlet):
    """Dirichlet shares, also where all concentrations are small.

    Drawn by logarithms: gamma variates could all underflow, and make equal shares.
    """

    def sample(self, sample_shape: _size = Size()) -> Tensor:
        with torch.no_grad():
            return self._by_logarithms(sample_shape)

    def rsample(self, sample_shape: _size = Size()) -> Tensor:
        # From 0.1 on not all underflow, and PyTorch's gradient has the lower variance.
        if self.concentration.max() >= 0.1:
            return super().rsample(sample_shape)
        return self._by_logarithms(sample_shape)

    def _by_logarithms(self, sample_shape: _size) -> Tensor:
        shares = LogGamma(self.concentration).rsample(sample_shape).softmax(-1)
        return shares.clamp_min(torch.finfo(shares.dtype).tiny)


class _Divergence(torch.autograd.Function):
    """KL between Dirichlet distributions, the prior fixed.

    With its gradient in closed form: step by step, its dozen operations on a few numbers each would
    cost more than all the rest of a switch.
    """

    @staticmethod
    def forward(ctx: Any, factor: Tensor, prior: Tensor) -> Tensor:
        # That of the gamma variates that make the shares, less that of their total.
        a, b = (torch.cat([x, x.sum(-1, keepdim=True)], -1) for x in (factor, prior))
        excess = a - b
        ctx.save_for_backward(a, excess)
        parts = excess * a.digamma() - a.lgamma() + b.lgamma()
        return parts[..., :-1].sum(-1) - parts[..., -1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:  # type: ignore[override]
        a, excess = ctx.saved_tensors
        slopes = excess * torch.polygamma(1, a)
        return gradients[0][..., None] * (slopes[..., :-1] - slopes[..., -1:]), None


@register_kl(_Shares, _Shares)
def _kl_shares(q: _Shares, p: _Shares) -> Tensor:
    return _Divergence.apply(q.concentration, p.concentration)  # type: ignore[return-value]


class Dirichlet(SimplexSwitch):
    r"""Importance shares :math:`s \sim \mathrm{Dir}(\alpha_0 1_C)`, gates :math:`z = m s`.

    The factor is :math:`q(s) = \mathrm{Dir}(\varphi)` with :math:`\varphi = \mathrm{softplus}
    (\theta)`; the divergence from the prior is exact. Each share is Beta distributed, so that mean,
    variance, quantiles and tail probabilities are in closed form.

    Parameters
    ----------
    concentration : float
        :math:`\alpha_0 > 0`; below 1 the prior favours sparse shares.
    total : {"size", "keep", "anneal"} or float
        The gate mass m, see `SimplexSwitch`.
    init : float
        Initial :math:`\varphi_i > 0`, the same for all channels.

    Raises
    ------
    ConfigError
        If a hyper-parameter is out of range.

    References
    ----------
    Adamczewski and Park, "Dirichlet Pruning for Neural Network Compression", AISTATS 2021. The
    paper's gate is the share itself (mass 1) and is placed before the normalisation.
    """

    reference = "Adamczewski and Park, AISTATS 2021"

    def __init__(
        self, concentration: float = 0.1, total: Total = "size", init: float = 1.0
    ) -> None:
        super().__init__(total)
        if not (0 < concentration < math.inf and 0 < init < math.inf):
            raise ConfigError(
                f"Dirichlet: concentration and init must be positive, got {concentration}, {init}"
            )
        self.concentration = concentration
        self.init = init

    def initialise(self, keep: float | None) -> None:
        super().initialise(keep)
        self.factor_concentration: Any = PyroParam(
            torch.full((self.size,), self.init), constraints.softplus_positive
        )

    def sites(self) -> dict[str, Site]:
        # Softplus underflows to 0 in float32, far below any share that matters.
        factor = at_least(1e-6, self.factor_concentration)
        prior = torch.full_like(factor, self.concentration)
        # Unchecked: the sum of many shares is not 1 to the check's last digit.
        unchecked = {"validate_args": False}
        return {"share": Site(_Shares(prior, **unchecked), _Shares(factor, **unchecked))}

    def gate(self, values: Mapping[str, Tensor]) -> Tensor:
        return self.mass * values["share"]

    def mean(self) -> Tensor:
        return self.mass * self.sites()["share"].factor.mean.detach()

    def sd(self) -> Tensor:
        return self.mass * self.sites()["share"].factor.variance.detach().sqrt()

    def quantile(self, q: float) -> Tensor:
        if self.size == 1:
            return self.mass.expand(1)
        return self.mass * self._beta(special.betaincinv, q)

    def probability_below(self, threshold: float) -> Tensor:
        share = threshold / self.mass.item()
        if self.size == 1 or share >= 1 or share <= 0:
            certain = share > 1 or (share == 1 and self.size > 1)
            return self.mass.new_full((self.size,), float(certain))
        return self._beta(special.betainc, share)

    def _beta(self, function: np.ufunc, argument: float) -> Tensor:
        """`function` of the Beta marginal of each share."""
        phi = self.sites()["share"].factor.concentration.detach()
        a = phi.double().cpu().numpy()
        return torch.as_tensor(function(a, a.sum() - a, argument)).to(phi)
