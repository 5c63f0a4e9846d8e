"""Draws per example that count as one latent variable."""

import pyro.distributions as dist
import torch
from torch.distributions import kl_divergence

from bayesprune.distributions import Replicated

BASE = dist.Dirichlet(torch.tensor([0.5, 2.0, 3.0]))


def test_draws_are_independent_and_of_the_base():
    draws = Replicated(BASE, 20_000).sample()
    assert draws.shape == (20_000, 3)
    error = (BASE.variance / 20_000).sqrt()
    assert ((draws.mean(0) - BASE.mean).abs() < 5 * error).all()
    correlation = torch.corrcoef(draws[:, 0].reshape(2, -1))[0, 1]
    assert correlation.abs() < 5 / 10_000**0.5


def test_shapes():
    replicated = Replicated(BASE, 4)
    assert replicated.batch_shape == ()
    assert replicated.event_shape == (4, 3)
    assert replicated.rsample(torch.Size((5,))).shape == (5, 4, 3)
    wide = replicated.expand(torch.Size((2,)))
    assert (wide.batch_shape, wide.event_shape) == ((2,), (4, 3))
    scalar = Replicated(dist.Normal(0.0, 1.0), 4)
    assert scalar.rsample().shape == (4,)
    assert scalar.log_prob(scalar.sample()).shape == ()


def test_density_and_divergence_count_once():
    draw = BASE.sample()
    same = draw.expand(7, 3)
    torch.testing.assert_close(Replicated(BASE, 7).log_prob(same), BASE.log_prob(draw))
    other = dist.Dirichlet(torch.ones(3))
    torch.testing.assert_close(
        kl_divergence(Replicated(BASE, 7), Replicated(other, 7)), kl_divergence(BASE, other)
    )


def test_passes_gradients_on():
    concentration = torch.ones(3, requires_grad=True)
    replicated = Replicated(dist.Dirichlet(concentration), 2)
    assert replicated.has_rsample
    replicated.rsample()[:, 0].sum().backward()
    assert concentration.grad.abs().sum() > 0
    assert not Replicated(dist.Categorical(torch.ones(3)), 2).has_rsample
