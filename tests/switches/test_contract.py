"""The contract of a switch: every family that `FAMILIES` lists passes all of it.

A new family needs nothing here; hyper-parameters other than its defaults go into `ALSO`.
``python -m pytest tests/switches/test_contract.py --switch module.Class`` runs over another class.
"""

import copy
import functools
import math
import pickle

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from torch import nn
from torch.distributions import kl_divergence

import bayesprune as bp
from bayesprune._describe import describe
from bayesprune.distributions import Concrete
from bayesprune.errors import ConfigError
from bayesprune.svi import negative_elbo
from bayesprune.switches import FAMILIES, Dirichlet, Horseshoe, LogisticNormal, Radial, SpikeAndSlab
from bayesprune.switches._simplex import SimplexSwitch
from bayesprune.switches._switch import MONTE_CARLO_DRAWS, Switch

SIZE = 6
DRAWS = 1_000_000
ALSO = {
    Dirichlet: [
        {"concentration": 2.0, "total": "keep"},
        {"total": 2.5, "init": 0.2},
        {"total": "anneal"},
    ],
    LogisticNormal: [
        {"rank": 2, "total": "keep"},
        {"rank": "full", "concentration": 1.0, "total": 3},
    ],
    SpikeAndSlab: [{"slab": Horseshoe()}],
}
FAN_IN = 25.0


def pytest_generate_tests(metafunc):
    """Run a test of a prototype over all families, or over the class that ``--switch`` names."""
    if "prototype" in metafunc.fixturenames:
        families = metafunc.config.getoption("switch") or FAMILIES
        every = [family(**args) for family in families for args in ({}, *ALSO.get(family, []))]
        metafunc.parametrize("prototype", every, ids=repr)


def fitted(prototype, size=SIZE):
    """A switch in double precision whose factor is somewhere in its family."""
    switch = prototype.bind(size, keep=0.4 * size, fan_in=FAN_IN).double()
    generator = torch.Generator().manual_seed(size)
    with torch.no_grad():
        for parameter in switch.parameters():
            parameter += 0.7 * torch.randn(parameter.shape, generator=generator)
    return switch


@functools.cache
def sample(prototype):
    """Draws of the fitted switch, made once."""
    return fitted(prototype).sample(DRAWS)


def divergence(switch):
    return sum(kl_divergence(site.factor, site.prior) for site in switch.sites().values())


def reparameterised(switch):
    return all(site.factor.has_rsample for site in switch.sites().values())


def draw(switch, count, kind="factor"):
    """Values of all sites, with gradients."""
    return {n: getattr(s, kind).rsample((count,)) for n, s in switch.sites().items()}


def variance_of(switch, summary, count=DRAWS):
    """Variance of (summary - average of `count` draws), in units of one draw's variance."""
    closed = getattr(type(switch), summary) is not getattr(Switch, summary)
    return 1 / count + (0 if closed else 1 / MONTE_CARLO_DRAWS)


def assert_within_5(difference, variance):
    assert (difference.abs() <= 5 * variance.sqrt() + 1e-12).all(), difference / variance.sqrt()


def finite_difference(switch, value, step=1e-4):
    """The gradient of `value(switch)` in the switch's parameters, in order, as one vector."""
    slopes = []
    with torch.no_grad():
        for parameter in switch.parameters():
            for i in range(parameter.numel()):
                entry = parameter.view(-1)[i]
                start, ends = entry.item(), []
                for shift in (step, -step):
                    entry.fill_(start + shift)
                    ends.append(value(switch).item())
                entry.fill_(start)
                slopes.append((ends[0] - ends[1]) / (2 * step))
    return torch.tensor(slopes, dtype=torch.double)


def gradient(switch, value):
    parameters = list(switch.parameters())
    grads = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    pairs = zip(grads, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


# Gates -------------------------------------------------------------------------------------------


def test_gates_keep_leading_dimensions(prototype):
    switch = fitted(prototype)
    for shape in ((), (4,), (4, 3)):
        values = {name: site.factor.sample(shape) for name, site in switch.sites().items()}
        assert switch.gate(values).shape == (*shape, SIZE)


@pytest.mark.parametrize("size", [1, SIZE, 4096])
def test_gates_are_finite_at_every_size(prototype, size):
    switch = prototype.bind(size, keep=max(1.0, 0.1 * size), fan_in=FAN_IN)
    drawn = [switch.sample(3), *([switch.prior_sample(3)] if switch.has_prior else [])]
    for gates in drawn:
        assert gates.shape == (3, size)
        assert gates.isfinite().all()
        if isinstance(switch, SimplexSwitch):
            assert (gates >= 0).all()
            torch.testing.assert_close(gates.sum(-1), switch.mass.expand(3), rtol=1e-4, atol=0)
    mean = switch.gate({name: site.factor.mean for name, site in switch.sites().items()})
    assert mean.isfinite().all()
    kl = divergence(switch)
    kl.backward()
    assert kl.shape == ()
    assert kl >= 0
    for site in switch.sites().values():  # without complaints from a validator
        assert site.prior.log_prob(site.factor.sample((5,))).shape == (5,)
        assert site.factor.log_prob(site.factor.sample((5,))).isfinite().all()


def test_gates_are_not_negative_or_say_so(prototype):
    switch = fitted(prototype)
    with torch.no_grad():
        for parameter in switch.parameters():
            parameter += 1.0
    signed = "may be negative" in type(prototype).__doc__
    assert ((switch.sample(1000) >= 0).all() and (switch.mean() >= 0).all()) or signed


def test_tensors_are_made_on_the_device_of_the_switch(prototype):
    """Nothing is left behind: a tensor elsewhere could not be combined with those on `meta`."""
    switch = fitted(prototype).to("meta")
    with pyro.validation_enabled(False):  # which looks at values
        shapes = {name: site.factor.event_shape for name, site in switch.sites().items()}
        values = {n: torch.empty(3, *s, device="meta").double() for n, s in shapes.items()}
        assert switch.gate(values).device.type == "meta"
        if not isinstance(switch, Radial):  # which compares dimensions before it starts
            assert divergence(switch).device.type == "meta"


# Summaries ---------------------------------------------------------------------------------------


def test_mean_and_sd(prototype):
    switch = fitted(prototype)
    draws = sample(prototype)
    variance = draws.var(0)
    assert_within_5(draws.mean(0) - switch.mean(), variance * variance_of(switch, "mean"))
    fourth = (draws - draws.mean(0)).pow(4).mean(0) - variance.square()
    assert_within_5(variance - switch.sd().square(), fourth * variance_of(switch, "sd"))


@pytest.mark.parametrize("q", [0.03, 0.5, 0.97])
def test_quantile(prototype, q):
    switch = fitted(prototype)
    draws, quantile = sample(prototype), switch.quantile(q)
    variance = torch.tensor(q * (1 - q) * variance_of(switch, "quantile"))
    # A quantile from draws lies between two of them.
    error = 5 * variance.sqrt() + 1 / MONTE_CARLO_DRAWS
    rounding = 1e-9 * quantile.abs()
    assert ((draws <= quantile + rounding).double().mean(0) >= q - error).all()
    assert ((draws < quantile - rounding).double().mean(0) <= q + error).all()


@pytest.mark.parametrize("fraction", [0.01, 0.5, 1.5])
def test_probability_below(prototype, fraction):
    switch = fitted(prototype)
    threshold = fraction * switch.mean().max().item()
    draws = (sample(prototype) < threshold).double().mean(0)
    variance = (draws * (1 - draws)).clamp_min(1 / DRAWS)
    assert_within_5(
        draws - switch.probability_below(threshold),
        variance * variance_of(switch, "probability_below"),
    )
    assert (switch.probability_below(1e9) == 1).all()
    assert (switch.probability_below(-1e9) == 0).all()


def test_importance_ranks_and_summaries_leave_the_generator_alone(prototype):
    switch = fitted(prototype)
    state = torch.get_rng_state()
    summaries = [
        switch.mean(),
        switch.sd(),
        switch.quantile(0.5),
        switch.probability_below(0.5),
        switch.importance(),
    ]
    assert torch.equal(torch.get_rng_state(), state)
    for summary in summaries:
        assert summary.shape == (SIZE,)
        assert summary.dtype == torch.double
        assert summary.isfinite().all()
        assert not summary.requires_grad
    assert torch.equal(switch.mean(), summaries[0])
    assert switch.interval_scale or (summaries[-1] >= 0).all()
    if isinstance(switch, SimplexSwitch):
        torch.testing.assert_close(summaries[-1].mean().item(), 1.0)
    if switch.ranks_by is None:
        assert torch.equal(summaries[-1].argsort(), summaries[0].argsort())


# Divergence and draws ----------------------------------------------------------------------------


def test_divergence_is_registered_and_right(prototype):
    switch = fitted(prototype)
    for site in switch.sites().values():
        assert site.prior.batch_shape == site.factor.batch_shape == ()
        assert site.prior.event_shape == site.factor.event_shape
        draws = site.factor.sample((DRAWS,))
        kl = kl_divergence(site.factor, site.prior)
        assert kl >= 0
        # Improper priors and relaxed variables have divergences of their own, tested with them.
        if not site.is_proper or isinstance(getattr(site.factor, "base_dist", None), Concrete):
            continue
        ratio = site.factor.log_prob(draws) - site.prior.log_prob(draws)
        assert_within_5(ratio.mean() - kl, ratio.var() / DRAWS)


def test_divergence_gradient(prototype):
    switch = fitted(prototype)
    expected = finite_difference(switch, divergence)
    torch.testing.assert_close(gradient(switch, divergence(switch)), expected, rtol=1e-5, atol=1e-6)


def test_gradient_of_draws(prototype):
    """The mean gradient of E[c z²] over draws is the slope of c (mean² + sd²)."""
    switch = fitted(prototype)
    if not reparameterised(switch):
        with pytest.raises(NotImplementedError):
            draw(switch, 1)
        return  # ARM and AR have tests of their own
    weights = torch.linspace(-1, 1, SIZE, dtype=torch.double) + 0.1

    def expectation(switch):
        return weights @ (switch.mean().square() + switch.sd().square())

    chunks, size = 40, MONTE_CARLO_DRAWS
    slopes = torch.stack(
        [
            gradient(switch, (switch.gate(draw(switch, size)).square() @ weights).mean())
            for _ in range(chunks)
        ]
    )
    # A summary from draws has common random numbers, and the error of one chunk.
    error = slopes.var(0) * size * variance_of(switch, "mean", chunks * size)
    assert_within_5(slopes.mean(0) - finite_difference(switch, expectation), error)


def test_distributions_expand(prototype):
    for site in fitted(prototype).sites().values():
        for distribution in site if site.is_proper else [site.factor]:
            wide = distribution.expand(torch.Size((3,)))
            assert wide.batch_shape == (3,)
            assert wide.sample().shape == (3, *distribution.event_shape)
            assert wide.log_prob(wide.sample()).isfinite().all()


def extreme(prototype, value, spread):
    """A switch whose unconstrained parameters are all near a value, or near it and its negative."""
    switch = prototype.bind(SIZE, keep=2.0, fan_in=FAN_IN)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in switch.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(value * (noise.sign() if spread else 1 + 0.1 * noise))
    return switch


@pytest.mark.parametrize(("value", "spread"), [(40.0, False), (-40.0, False), (40.0, True)])
def test_extreme_parameters_give_no_nan(prototype, value, spread):
    switch = extreme(prototype, value, spread)
    kl = divergence(switch)
    assert kl >= 0
    results = [kl, switch.mean(), switch.sd(), switch.quantile(0.03), switch.quantile(0.97)]
    results += [switch.probability_below(0.1), switch.sample(100), switch.importance()]
    results += [switch.prior_sample(100)] if switch.has_prior else []
    if reparameterised(switch):
        gates = switch.gate(draw(switch, 100))
        results += [gates, gradient(switch, gates[:, 0].sum())]
    active = switch.active_probability()
    results += [active, gradient(switch, active.sum())] if active.requires_grad else []
    assert ((active >= 0) & (active <= 1)).all()
    assert not any(result.isnan().any() for result in results)


def test_an_overshooting_parameter_comes_back(prototype):
    """No parameter has a zero gradient where one step of an optimizer may take it."""
    switch = extreme(prototype, -20.0, False)
    divergence(switch).backward()
    for parameter in switch.parameters():
        assert parameter.grad.any()


# The loss of a fit, against Pyro's ----------------------------------------------------------------

NUM_DATA = 40


@functools.cache
def switched(prototype):
    """A network of two gated layers in double precision, and a batch."""
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Linear(3, SIZE), nn.Tanh(), nn.Linear(SIZE, 4), nn.Tanh(), nn.Linear(4, 3)
    ).double()
    inputs, targets = torch.randn(7, 3).double(), torch.arange(7) % 3
    groups = bp.trace_groups(network, inputs)
    weights = {"0": 0.5, "2": 3.0}
    made = bp.SwitchedNetwork(
        network, groups, prototype, num_data=NUM_DATA, keep=0.5, kl_weight=weights
    )
    made.guide.kl_weight = 0.4
    for bound in made.guide.switches:
        bound.load_state_dict(fitted(prototype, bound.size).state_dict())
    return made.double(), inputs, targets


def pyro_loss(switched, values, inputs, targets):
    """Pyro's loss with these values of the sites in place of draws from the guide."""
    with pyro.validation_enabled(False):  # the mean of a coin is no value of it
        guide = poutine.trace(switched.guide).get_trace()
        for name, value in values.items():
            guide.nodes[name]["value"] = value
        elbo = TraceMeanField_ELBO()
        replayed = poutine.replay(switched.guide, trace=guide)
        return elbo.differentiable_loss(switched, replayed, inputs, targets)


def factors_of(switched):
    return {
        f"{name}.{site}": own.factor
        for name, switch in switched.guide.items()
        for site, own in switch.sites().items()
    }


def assert_same_loss(made, found, expected):
    torch.testing.assert_close(NUM_DATA * found, expected)
    slopes = [gradient(made.guide, loss) for loss in (NUM_DATA * found, expected)]
    torch.testing.assert_close(*slopes)


def test_loss_at_the_mean_is_that_of_pyro(prototype):
    made, *batch = switched(prototype)
    found = negative_elbo(made, bp.AnalyticMean(), *batch)
    means = {name: factor.mean for name, factor in factors_of(made).items()}
    assert_same_loss(made, found.loss, pyro_loss(made, means, *batch))
    torch.testing.assert_close(found.loss, found.nll + 0.4 * found.kl)


@pytest.mark.parametrize("num_samples", [1, 3])
def test_loss_of_shared_draws_is_that_of_pyro(prototype, num_samples):
    made, *batch = switched(prototype)
    if not all(map(reparameterised, made.guide.switches)):
        with pytest.raises(ConfigError, match=r"0\.gate: .*Bernoulli"):
            negative_elbo(made, bp.Implicit(num_samples), *batch)
        return
    torch.manual_seed(5)
    found = negative_elbo(made, bp.Implicit(num_samples), *batch).loss
    torch.manual_seed(5)
    elbo = TraceMeanField_ELBO(num_particles=num_samples)
    with pyro.validation_enabled():
        expected = elbo.differentiable_loss(made, made.guide, *batch)
    assert_same_loss(made, found, expected)


@pytest.mark.parametrize(
    "estimator",
    [bp.Implicit(3, "group"), bp.Implicit(1, "example"), bp.ARM(), bp.AR()],
    ids=repr,
)
def test_loss_of_draws_by_example_is_that_of_pyro_on_each_example(prototype, estimator):
    made, inputs, targets = switched(prototype)
    pathwise = isinstance(estimator, bp.Implicit)
    if pathwise and not all(map(reparameterised, made.guide.switches)):
        return  # refused, as shared draws are
    seen = {}
    expect = type(estimator).expect

    class Watched(type(estimator)):
        """Keeps the values at which the network is run first."""

        def expect(self, log_likelihood, factors, batch_size):
            def watched(values):
                for name, value in values.items():
                    seen.setdefault(name, value)
                return log_likelihood(values)

            return expect(self, watched, factors, batch_size)

    watched = Watched(**{n: getattr(estimator, n) for n in ("num_samples", "share") if pathwise})
    found = negative_elbo(made, watched, inputs, targets).loss
    each = [
        pyro_loss(made, {n: v[i] for n, v in seen.items()}, inputs[i : i + 1], targets[i : i + 1])
        for i in range(len(targets))
    ]
    expected = torch.stack(each).mean()
    assert all(value.shape[0] == len(targets) for value in seen.values())
    assert set(seen) == set(factors_of(made))
    if pathwise:
        assert_same_loss(made, found, expected)
    else:  # the slope has no counterpart in Pyro; it is tested with the estimators
        torch.testing.assert_close(NUM_DATA * found, expected)


# Modules -----------------------------------------------------------------------------------------


def test_binding_leaves_the_prototype_alone_and_is_deterministic(prototype):
    first, second = (prototype.bind(SIZE, keep=2.0, fan_in=FAN_IN) for _ in range(2))
    assert not list(prototype.parameters())
    assert prototype.size == 0
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one is not other


def test_copies(prototype):
    switch = fitted(prototype)
    fresh = prototype.bind(SIZE, keep=float(SIZE), fan_in=FAN_IN).double()
    fresh.load_state_dict(switch.state_dict())
    for other in (fresh, copy.deepcopy(switch), pickle.loads(pickle.dumps(switch))):
        assert torch.equal(other.mean(), switch.mean())
        assert torch.equal(other.importance(), switch.importance())
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(torch.linspace(0.1, 1, parameter.numel()).view_as(parameter))
        assert not torch.equal(other.mean(), switch.mean())


def test_dtype(prototype):
    single, double = fitted(prototype).float(), fitted(prototype)
    assert single.mean().dtype == single.sample(1).dtype == torch.float32
    assert double.mean().dtype == double.sample(1).dtype == torch.float64
    torch.testing.assert_close(single.mean().double(), double.mean(), rtol=0.2, atol=0.1)


# Hyper-parameters --------------------------------------------------------------------------------


def test_init_args_build_the_same_prototype(prototype):
    again = type(prototype)(**prototype.init_args)
    assert describe(again) == describe(prototype)
    assert repr(again) == repr(prototype)
    assert all(f"{name}=" in repr(prototype) for name in prototype.init_args)


def test_bad_hyper_parameters(prototype):
    for name, value in type(prototype)().init_args.items():
        bad = {float: [math.nan, math.inf, -1.0, 0.0], int: [-1, 0.5], str: ["nonsense", None]}
        for other in bad.get(type(value), []):
            with pytest.raises(ConfigError, match=name):
                type(prototype)(**{**prototype.init_args, name: other})


def test_annealing(prototype):
    switch = prototype.bind(SIZE, keep=2.0)
    switch.anneal(0.0)
    before = switch.mean()
    switch.anneal(1.0)
    assert switch.mean().isfinite().all()
    if getattr(prototype, "total", None) != "anneal":
        assert torch.equal(switch.mean(), before)


def test_mass_falls_geometrically_over_half_of_the_fit():
    switch = Dirichlet(total="anneal").bind(16, keep=4)
    masses = []
    for progress in (0.0, 0.25, 0.5, 0.75, 1.0):
        switch.anneal(progress)
        masses.append(switch.mass.item())
    assert masses == pytest.approx([16, 8, 4, 4, 4])


@pytest.mark.parametrize(
    ("total", "keep", "mass"), [("size", None, 6), ("size", 2, 6), ("keep", 2, 2), (3, None, 3)]
)
def test_mass(total, keep, mass):
    assert Dirichlet(total=total).bind(6, keep).mass == mass


@pytest.mark.parametrize("total", ["keep", "anneal"])
def test_mass_that_needs_a_budget(total):
    with pytest.raises(ConfigError, match="keep"):
        Dirichlet(total=total).bind(6)


def test_initial_values_are_exact():
    phi = Dirichlet(init=0.3).bind(SIZE).sites()["share"].factor.concentration
    torch.testing.assert_close(phi, torch.full((SIZE,), 0.3), rtol=1e-6, atol=0)
    for rank in (0, "full"):
        factor = LogisticNormal(rank=rank, init_sd=0.3).bind(SIZE).sites()["log_mass"].factor
        torch.testing.assert_close(factor.variance, torch.full((SIZE,), 0.09))


@pytest.mark.parametrize("concentration", [1e-3, 0.3])
def test_sparse_shares_of_small_groups(concentration):
    """Nearly all the mass on one channel, not equal shares as where all variates underflow."""
    draws = Dirichlet(concentration).bind(4).prior_sample(20_000) / 4
    second = draws.square().sum(-1).double()
    expected = (concentration + 1) / (4 * concentration + 1)  # E[sum of squared shares]
    assert_within_5(second.mean() - expected, second.var() / len(second))


def test_states_its_reference(prototype):
    assert prototype.reference
    assert "References" in type(prototype).__doc__
