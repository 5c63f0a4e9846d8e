"""Closed-form Kullback-Leibler divergences that torch does not register."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import (
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    kl_divergence,
    register_kl,
)

from bayesprune.distributions.log_gamma import LogGamma
from bayesprune.distributions.replicated import Replicated


def _expected_log_gamma(loc: Tensor, variance: Tensor, prior: LogGamma) -> Tensor:
    """E[log prior(u)] for u ~ N(loc, variance), from the moment generating function."""
    return prior.concentration * loc - (loc + variance / 2).exp() - prior.concentration.lgamma()


@register_kl(Normal, LogGamma)
def _kl_normal_log_gamma(q: Normal, p: LogGamma) -> Tensor:
    return -q.entropy() - _expected_log_gamma(q.loc, q.variance, p)


@register_kl(MultivariateNormal, Independent)
@register_kl(LowRankMultivariateNormal, Independent)
def _kl_multivariate_normal_log_gamma(
    q: MultivariateNormal | LowRankMultivariateNormal, p: Independent
) -> Tensor:
    if not isinstance(p.base_dist, LogGamma) or p.reinterpreted_batch_ndims != 1:
        raise NotImplementedError
    return -q.entropy() - _expected_log_gamma(q.mean, q.variance, p.base_dist).sum(-1)


@register_kl(Replicated, Replicated)
def _kl_replicated(q: Replicated, p: Replicated) -> Tensor:
    return torch.as_tensor(kl_divergence(q.base, p.base))
