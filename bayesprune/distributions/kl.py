"""Kullback-Leibler divergences that torch does not register."""

from __future__ import annotations

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Distribution,
    Gamma,
    Independent,
    InverseGamma,
    LogNormal,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    register_kl,
)
from torch.nn.functional import softplus

from bayesprune.distributions.concrete import Concrete
from bayesprune.distributions.improper import Improper
from bayesprune.distributions.log_gamma import LogGamma
from bayesprune.distributions.truncated_log_normal import LogUniform, TruncatedLogNormal
from bayesprune.distributions.von_mises_fisher import VonMisesFisherCosine


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
        raise NotImplementedError  # as torch says of pairs without a closed form
    return -q.entropy() - _expected_log_gamma(q.mean, q.variance, p.base_dist).sum(-1)


def _kl_normal_log_rate_gamma(loc: Tensor, scale: Tensor, p: Gamma | InverseGamma) -> Tensor:
    """KL of N(loc, scale^2) from the law of log g, g ~ Gamma(p.concentration, p.rate)."""
    shifted = loc + p.rate.log()  # log g + log rate is log-gamma
    return _kl_normal_log_gamma(Normal(shifted, scale, False), LogGamma(p.concentration, False))


@register_kl(LogNormal, Gamma)
def _kl_log_normal_gamma(q: LogNormal, p: Gamma) -> Tensor:
    return _kl_normal_log_rate_gamma(q.loc, q.scale, p)


@register_kl(LogNormal, InverseGamma)
def _kl_log_normal_inverse_gamma(q: LogNormal, p: InverseGamma) -> Tensor:
    return _kl_normal_log_rate_gamma(-q.loc, q.scale, p)


@register_kl(TruncatedLogNormal, LogUniform)
def _kl_truncated_log_normal_log_uniform(q: TruncatedLogNormal, p: LogUniform) -> Tensor:
    divergence = (p.high - p.low).log() - q.log.entropy()
    outside = (q.low < p.low) | (q.high > p.high)
    return torch.where(outside, torch.inf, divergence)


@register_kl(Concrete, Bernoulli)
def _kl_concrete_bernoulli(q: Concrete, p: Bernoulli) -> Tensor:
    """KL between the Bernoulli variables: the usual surrogate, q having a density and p atoms.

    Used with spike-and-slab priors by Jantre, Bhattacharya & Maiti, TNNLS 2024, for example.
    """
    on = q.logits.sigmoid() * (softplus(-p.logits) - softplus(-q.logits))
    off = (-q.logits).sigmoid() * (softplus(p.logits) - softplus(q.logits))
    return on + off


@register_kl(VonMisesFisherCosine, VonMisesFisherCosine)
def _kl_cosine_cosine(q: VonMisesFisherCosine, p: VonMisesFisherCosine) -> Tensor:
    if (q.dim != p.dim).any():
        raise ValueError(f"KL of cosines: expected equal dim, got {q.dim} and {p.dim}")
    q_mean = q.mean.double()
    divergence = (q.concentration - p.concentration) * q_mean - q.log_mgf() + p.log_mgf()
    return divergence.to(q.concentration.dtype)


@register_kl(Distribution, Improper)
@register_kl(Delta, Improper)  # between (Distribution, Improper) and Pyro's (Delta, Distribution)
def _kl_improper(q: Distribution, p: Improper) -> Tensor:
    return p.divergence(q)
