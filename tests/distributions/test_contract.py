"""What holds for each distribution in `bayesprune.distributions`."""

import itertools
import math
from typing import NamedTuple

import pytest
import torch
from torch.distributions import Distribution

from bayesprune import distributions
from bayesprune.distributions import (
    Concrete,
    HardConcrete,
    Improper,
    LogGamma,
    LogUniform,
    TruncatedLogNormal,
    TruncatedNormal,
    UniformCosine,
    VonMisesFisherCosine,
)

DRAWS = 100_000
PROBABILITIES = torch.tensor([1e-6, 0.01, 0.2, 0.5, 0.9, 0.999, 1 - 1e-6], dtype=torch.double)
SCALES = [math.exp(power) for power in (-20, -10, -1, 2, 5)]


def double(*values):
    return torch.tensor(values, dtype=torch.double)


class Case(NamedTuple):
    make: type[Distribution]
    parameters: dict[str, torch.Tensor]  # those with gradients
    constants: dict[str, torch.Tensor]
    ends: tuple[float, float]  # of the support
    extremes: dict[str, list[float]]  # every combination
    atoms: tuple[float, ...] = ()
    has_cdf: bool = True

    def __call__(self, **parameters):
        return self.make(**(self.constants | self.parameters | parameters))


CASES = {
    "LogGamma": Case(
        LogGamma,
        {"concentration": double(0.5, 2.0, 30.0)},
        {},
        (-80, 6),
        {"concentration": [1e-3, 1.0, 1e4]},
        has_cdf=False,
    ),
    "TruncatedNormal": Case(
        TruncatedNormal,
        {"loc": double(-1.0, 3.0, -9.0, 30.0), "scale": double(0.5, 2.0, 1.0, 3.0)},
        {"low": double(-2.0), "high": double(1.5)},
        (-2, 1.5),
        {"loc": [-60.0, -20.0, -7.0, 0.0, 60.0], "scale": SCALES},
    ),
    "TruncatedLogNormal": Case(
        TruncatedLogNormal,
        {"loc": double(-1.0, 0.0, -4.0, 5.0, -22.0), "scale": double(0.5, 0.01, 2.0, 3.0, 0.5)},
        {},
        (math.exp(-20), 1),
        {"loc": [-60.0, -20.0, -7.0, 0.0, 5.0], "scale": SCALES},
    ),
    "LogUniform": Case(
        LogUniform,
        {},
        {"low": double(-3.0), "high": double(0.5)},
        (math.exp(-3), math.exp(0.5)),
        {},
    ),
    "HardConcrete": Case(
        HardConcrete,
        {"log_alpha": double(-4.0, 0.0, 0.7, 3.0), "temperature": double(0.3, 2 / 3, 2 / 3, 2.0)},
        {},
        (0, 1),
        {"log_alpha": [-50.0, -5.0, 0.0, 5.0, 50.0], "temperature": [0.05, 2 / 3, 3.0]},
        atoms=(0.0, 1.0),
    ),
    "Concrete": Case(
        Concrete,
        {"logits": double(-3.0, 0.0, 1.0, 0.5), "temperature": double(0.7, 0.5, 1.0, 2.5)},
        {},
        (0, 1),
        {"logits": [-50.0, -5.0, 0.0, 5.0, 50.0], "temperature": [0.05, 0.5, 3.0]},
    ),
    "VonMisesFisherCosine": Case(
        VonMisesFisherCosine,
        {"concentration": double(0.5, 3.0, 40.0, 5.0, 200.0)},
        {"dim": double(2, 3, 5, 25, 500)},
        (-1, 1),
        {"concentration": [0.0, 1e-8, 1.0, 1e3, 1e8], "dim": [2.0, 3.0, 25.0, 4608.0, 2e5]},
    ),
    "UniformCosine": Case(UniformCosine, {}, {"dim": double(2, 3, 9, 500)}, (-1, 1), {}),
}
# Tested elsewhere: priors that have neither draws nor density.
OTHERS = {
    "Improper",
    "InformationBottleneckPrior",
    "NonzeroPenalty",
    "NormalJeffreys",
}


def cases(condition=lambda case: True):
    chosen = {name: case for name, case in CASES.items() if condition(case)}
    return pytest.mark.parametrize("case", chosen.values(), ids=chosen)


def test_lists_every_distribution():
    members = {name: getattr(distributions, name) for name in distributions.__all__}
    public = {
        name
        for name, member in members.items()
        if isinstance(member, type) and issubclass(member, Distribution)
    }
    assert public == CASES.keys() | OTHERS
    assert all(issubclass(members[name], Improper) for name in OTHERS)


@cases()
def test_moments_are_those_of_draws(case):
    q = case()
    draws = q.sample(torch.Size((DRAWS,)))
    assert draws.shape == (DRAWS, *q.batch_shape)
    assert q.support.check(draws).all()
    for sample, moment in ((draws, q.mean), ((draws - q.mean) ** 2, q.variance)):
        error = sample.std(0) / math.sqrt(DRAWS)
        assert ((sample.mean(0) - moment).abs() < 5 * error).all()


@pytest.mark.parametrize("how", ["sample", "rsample"])
@cases(lambda case: case.has_cdf)
def test_draws_follow_the_cdf(case, how):
    q = case()
    with torch.no_grad():
        draws = getattr(q, how)(torch.Size((DRAWS // 2,)))
        for probability in (0.01, 0.2, 0.5, 0.9, 0.99):
            value = q.icdf(torch.full(q.batch_shape, probability, dtype=torch.double))
            below = q.cdf(value)  # more than the probability at an atom
            error = (below * (1 - below) / len(draws)).sqrt() + 1e-9
            share = (draws <= value).double().mean(0)
            assert ((share - below).abs() < 5 * error).all()


@cases()
def test_density_has_total_one_and_the_moments(case):
    # Trapezoidal rule in the logit of the position between the ends, where densities that diverge
    # at the ends or crowd there are smooth.
    q = case()
    low, high = case.ends
    logit = torch.linspace(-45, 33, 40_001, dtype=torch.double).unsqueeze(-1)
    value = low + (high - low) * logit.sigmoid()
    slope = (high - low) * logit.sigmoid() * (-logit).sigmoid()
    inside = (value > low) & (value < high)  # what has not been rounded to an end
    if case.atoms:
        inside &= (value > 0) & (value < 1)
    density = q.log_prob(value.clamp(low, high)).exp() * inside
    atoms = {atom: q.log_prob(double(atom)).exp() for atom in case.atoms}

    def integral(function):
        smooth = torch.trapezoid(density * slope * function(value), logit, dim=0)
        return smooth + sum(mass * function(atom) for atom, mass in atoms.items())

    expected = {"rtol": 2e-7, "atol": 2e-7}
    torch.testing.assert_close(
        integral(lambda z: z**0), torch.ones(q.batch_shape).double(), **expected
    )
    torch.testing.assert_close(integral(lambda z: z), q.mean, **expected)
    torch.testing.assert_close(integral(lambda z: (z - q.mean) ** 2), q.variance, **expected)


@cases(lambda case: case.has_cdf)
def test_cdf_inverts_icdf(case):
    q = case()
    share = PROBABILITIES.unsqueeze(-1).expand(-1, *q.batch_shape)
    value = q.icdf(share)
    assert q.support.check(value).all()
    at_atom = torch.zeros_like(value, dtype=torch.bool)
    for atom in case.atoms:
        at_atom |= value == atom
    cdf = q.cdf(value)
    torch.testing.assert_close(cdf[~at_atom], share[~at_atom], rtol=1e-7, atol=1e-9)
    assert (cdf[at_atom] >= share[at_atom]).all()


@cases(lambda case: case.has_cdf)
def test_cdf_integrates_the_density(case):
    q = case()
    low, high = q.icdf(double(0.3)).expand(q.batch_shape), q.icdf(double(0.6)).expand(q.batch_shape)
    step = torch.linspace(0, 1, 2001, dtype=torch.double).unsqueeze(-1)
    value = low + (high - low) * step
    inside = (value > 0) & (value < 1) if case.atoms else torch.ones_like(value, dtype=torch.bool)
    density = torch.where(inside, q.log_prob(value).exp(), 0.0)
    expected = (high - low) * torch.trapezoid(density, step, dim=0)
    chosen = inside.all(0)  # an atom between the two has its own test above
    assert chosen.any()
    torch.testing.assert_close(
        (q.cdf(high) - q.cdf(low))[chosen], expected[chosen], rtol=2e-5, atol=0
    )


@cases(lambda case: case.parameters)
def test_gradients_are_finite_differences(case):
    """Of the moments, the density and, at constant cdf, of the quantiles that draws are made of."""
    arguments = tuple(value.clone().requires_grad_() for value in case.parameters.values())
    value = case().sample(torch.Size((3,)))

    def outputs(*values):
        q = case(**dict(zip(case.parameters, values, strict=True)))
        results = [q.mean, q.variance, q.log_prob(value)]
        if case.has_cdf:
            results += [q.cdf(value), q.icdf(double(0.1, 0.5, 0.8).unsqueeze(-1))]
        if hasattr(q, "snr"):
            results.append(q.snr.log())
        if hasattr(q, "probability_nonzero"):
            results.append(q.probability_nonzero)
        return tuple(results)

    assert torch.autograd.gradcheck(outputs, arguments, eps=1e-5, atol=1e-5, rtol=1e-4)


@cases(lambda case: case.parameters)
@pytest.mark.parametrize("power", [1, 2])
def test_mean_gradient_of_draws_is_that_of_the_moments(case, power):
    arguments = {name: value.clone().requires_grad_() for name, value in case.parameters.items()}
    q = case(**arguments)
    moment = q.mean if power == 1 else q.variance + q.mean**2
    exact = torch.autograd.grad(moment.sum(), list(arguments.values()))
    replicated = {  # a gradient for each of 50 batches of draws
        name: value.detach().expand(50, *q.batch_shape).clone().requires_grad_()
        for name, value in arguments.items()
    }
    draws = case(**replicated).rsample(torch.Size((500,)))
    sampled = torch.autograd.grad((draws**power).mean(0).sum(), list(replicated.values()))
    for gradients, expected in zip(sampled, exact, strict=True):
        error = gradients.std(0) / math.sqrt(len(gradients))
        assert ((gradients.mean(0) - expected).abs() < 5 * error + 1e-12).all()


@cases()
def test_single_precision_agrees_with_double(case):
    q = case()
    single = case.make(**{k: v.float() for k, v in (case.constants | case.parameters).items()})
    value = q.sample()
    for name in ("mean", "variance"):
        assert getattr(single, name).dtype == torch.float32
        torch.testing.assert_close(
            getattr(single, name).double(), getattr(q, name), rtol=1e-4, atol=1e-6
        )
    log_prob = single.log_prob(value.float())
    assert log_prob.dtype == torch.float32
    torch.testing.assert_close(log_prob.double(), q.log_prob(value), rtol=1e-3, atol=2e-3)
    assert single.rsample().dtype == torch.float32
    if case.has_cdf:
        share = double(0.2, 0.7).unsqueeze(-1)
        torch.testing.assert_close(
            single.icdf(share.float()).double(), q.icdf(share), rtol=1e-4, atol=1e-6
        )
        torch.testing.assert_close(
            single.cdf(value.float()).double(), q.cdf(value), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@cases(lambda case: case.extremes)
def test_extremes_stay_finite(case, dtype):
    grid = torch.tensor(list(itertools.product(*case.extremes.values())), dtype=dtype)
    arguments = dict(zip(case.extremes, grid.T, strict=True))
    for value in arguments.values():
        value.requires_grad_()
    q = case.make(**({k: v.to(dtype) for k, v in case.constants.items()} | arguments))
    draws = q.rsample(torch.Size((200,)))
    assert q.support.check(draws).all()
    results = {"draws": draws, "density": q.log_prob(draws.detach()), "mean": q.mean}
    results["variance"] = q.variance
    if case.has_cdf:
        results["cdf"] = q.cdf(draws.detach())
    for name in ("snr", "probability_nonzero"):
        if hasattr(q, name):
            results[name] = getattr(q, name)
    for name, result in results.items():
        assert result.dtype == dtype
        assert result.isfinite().all(), name
        gradients = torch.autograd.grad(
            result.sum(), list(arguments.values()), retain_graph=True, allow_unused=True
        )
        for gradient in gradients:
            assert gradient is None or gradient.isfinite().all(), name
    assert (q.variance >= 0).all()


@cases()
def test_expands(case):
    q = case()
    wide = q.expand(torch.Size((2, *q.batch_shape)))
    assert type(wide) is type(q)
    assert wide.batch_shape == (2, *q.batch_shape)
    assert wide.rsample(torch.Size((3,))).shape == (3, 2, *q.batch_shape)
    value = q.sample()
    torch.testing.assert_close(wide.log_prob(value), q.log_prob(value).expand(2, *q.batch_shape))
    torch.testing.assert_close(wide.mean[1], q.mean)
    event = wide.to_event(1)
    assert event.log_prob(event.rsample()).shape == (2,)


@cases()
def test_refuses_bad_parameters_and_values(case):
    for name in case.constants | case.parameters:
        with pytest.raises(ValueError, match=name):
            case.make(**(case.constants | case.parameters | {name: double(math.nan)}))
    with pytest.raises(ValueError, match="support"):
        case().log_prob(double(math.nan))
