"""Norms and proximal operators: special cases, identities, and scipy's minimum."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from bayesprune import penalties
from bayesprune.penalties import GSSAuxiliary, SmoothedHoyerGroupHalf
from bayesprune.penalties._penalty import ProximalPenalty
from bayesprune.penalties._prox import exclusive_level, mixed_levels, mixed_norm, soft
from bayesprune.penalties._units import Units
from bayesprune.training import Step

PROXIMAL = [
    member
    for member in penalties.PENALTIES
    if issubclass(member, ProximalPenalty) and member is not penalties.NetworkSlimming
]


class Vector:
    """The weights of a network's units, one after the other, as scipy wants them."""

    def __init__(self, method, units: Units) -> None:
        self.method, self.units = method, units
        self.state = method.start(units)
        self.parameters = units.parameters

    def get(self) -> np.ndarray:
        return torch.cat([p.detach().flatten() for p in self.parameters]).numpy().copy()

    @torch.no_grad()
    def set(self, values: np.ndarray) -> None:
        for p, part in zip(
            self.parameters,
            torch.from_numpy(values).split([p.numel() for p in self.parameters]),
            strict=True,
        ):
            p.copy_(part.view_as(p))

    def objective(self, values: np.ndarray, start: np.ndarray, rate: float):
        self.set(values)
        value = self.method.value(self.units, self.state)
        grads = torch.autograd.grad(value, self.parameters)
        slope = torch.cat([g.flatten() for g in grads]).numpy()
        difference = values - start
        return (
            0.5 * difference @ difference + rate * value.item(),
            difference + rate * slope,
        )


@pytest.mark.parametrize("strength", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("member", PROXIMAL)
def test_the_operator_gives_the_minimum_that_scipy_finds(
    member, strength, branches, branch_groups
) -> None:
    method = member(strength=strength)
    units = Units(branches, branch_groups, method.scale, method.extent)
    vector, rate = Vector(method, units), 0.4
    start = vector.get()
    with torch.no_grad():
        method.prox(units, rate)
    found = vector.get()
    least, _ = vector.objective(found, start, rate)
    rng = np.random.default_rng(0)
    for begin in (start, found + 1e-3 * rng.normal(size=len(start)), 0.1 * start):
        result = minimize(
            vector.objective, begin, args=(start, rate), jac=True, method="L-BFGS-B",
            options={"maxiter": 100, "ftol": 1e-15, "gtol": 1e-10},
        )  # fmt: skip
        assert result.fun >= least - 1e-9
    if member is not penalties.BayesL1Trim:  # it is not convex: scipy may stop elsewhere
        assert result.fun == pytest.approx(least, rel=1e-2, abs=1e-4)
    assert not np.array_equal(found, start)


@pytest.mark.parametrize("member", PROXIMAL)
def test_a_strong_operator_leaves_exact_zeros(member, branches, branch_groups) -> None:
    method = member(strength=1e3)
    units = Units(branches, branch_groups, method.scale, method.extent)
    with torch.no_grad():
        method.prox(units, 1.0)
    zeros = {name: (group.matrix() == 0).float().mean().item() for name, group in units.items()}
    if member is penalties.BayesL1Trim:  # half of the units is free: 2 of 3, 1 of 2
        assert [int((n == 0).sum()) for n in units.norms().values()] == [1, 1]
    elif member is penalties.ExclusiveLasso:  # the largest weight stays
        assert all(0.5 < share < 1 for share in zeros.values())
    else:
        assert all(share == 1 for share in zeros.values())


def test_exclusive_level_solves_its_equation() -> None:
    values, strength = torch.rand(50, 30).double(), torch.rand(50).double() * 3
    level = exclusive_level(values, strength)
    shrunk = soft(values, level[:, None])
    torch.testing.assert_close(level, strength * shrunk.sum(1))
    assert (shrunk.sum(1) > 0).all()


@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0])
def test_mixed_levels_satisfy_the_optimality_condition(spread: float) -> None:
    values = torch.rand(40, 3, 12).double() * (spread * torch.randn(40, 3, 12).double()).exp()
    level = torch.rand(40).double() * values.amax(-1).norm(dim=-1) * 1.1
    levels = mixed_levels(values, level)
    shrunk = soft(values, levels[..., None])
    alive = level < values.amax(-1).norm(dim=-1)
    assert 0 < alive.sum() < 40
    assert (shrunk[~alive] == 0).all()
    # Soft thresholding at level * a_g / N, with a and N those of the result.
    sums = shrunk.sum(-1)[alive]
    expected = level[alive, None] * sums / sums.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(levels[alive], expected, rtol=1e-6, atol=1e-9)


def test_the_mixed_norm_in_its_special_cases() -> None:
    x = torch.rand(4, 5)
    torch.testing.assert_close(mixed_norm(x[..., None]).sum(), x.norm(dim=1).sum())  # group lasso
    torch.testing.assert_close(mixed_norm(x[:, None]).sum(), x.sum())  # l1
    torch.testing.assert_close(mixed_norm(x.reshape(-1, 1)), x.norm())  # l2
    exclusive = x.sum(1).square().sum()
    torch.testing.assert_close(mixed_norm(x).square(), exclusive)  # exclusive lasso


@pytest.mark.parametrize("q", [0.5, 1.0, 2.0, 3.7, math.inf])
def test_the_auxiliary_form_is_the_closed_form(q: float) -> None:
    method, norms = GSSAuxiliary(q=q), torch.rand(7).double() + 0.1
    eta = method.auxiliary(norms)
    size = eta.amax() if math.isinf(q) else (eta**q).sum() ** (1 / q)
    torch.testing.assert_close(size, torch.ones_like(size))
    closed = (norms**method.exponent).sum() ** (2 / method.exponent)
    torch.testing.assert_close((norms.square() / eta).sum(), closed)
    # No other weights that are allowed do better.
    for _ in range(200):
        other = eta * (0.3 * torch.randn(7).double()).exp()
        other = other / (other.amax() if math.isinf(q) else (other**q).sum() ** (1 / q))
        assert (norms.square() / other).sum() >= closed - 1e-12
    scipy = minimize(
        lambda z: (norms.numpy() ** 2 / _allowed(z, q)).sum(), np.zeros(7), method="BFGS"
    )
    assert scipy.fun == pytest.approx(closed.item(), rel=1e-6)


def _allowed(z: np.ndarray, q: float) -> np.ndarray:
    eta = np.exp(z)
    return eta / (eta.max() if math.isinf(q) else (eta**q).sum() ** (1 / q))


def test_the_auxiliary_penalty_is_the_norm_of_gss_212(branches, branch_groups) -> None:
    units = Units(branches, branch_groups)
    one, other = (m(strength=0.7) for m in (GSSAuxiliary, penalties.GSS212))
    torch.testing.assert_close(one.value(units, {}), other.value(units, {}))
    norms = torch.cat(list(units.norms().values()))
    l2 = GSSAuxiliary(strength=0.7, q=math.inf).value(units, {})
    torch.testing.assert_close(l2, 0.7 * norms.norm())


def test_repeated_auxiliary_steps_reach_the_operator(branches, branch_groups) -> None:
    """Small steps of reweighted ridge descend the same penalty as small proximal steps."""

    results = []
    for method in (GSSAuxiliary(strength=1.0), penalties.GSS212(strength=1.0)):
        units = Units(copy.deepcopy(branches), branch_groups)
        with torch.no_grad():
            for index in range(400):
                method.after_step(units, {}, Step(index, 400, 400, 1e-3))
        results.append(torch.cat([norms.detach() for norms in units.norms().values()]))
    torch.testing.assert_close(*results, rtol=5e-3, atol=5e-3)


def test_the_smoothing_meets_the_norm_with_two_derivatives() -> None:
    method = SmoothedHoyerGroupHalf(width=0.3)
    x = torch.tensor([0.3 - 1e-12], dtype=torch.double, requires_grad=True)
    value = method.smoothed(x)
    (slope,) = torch.autograd.grad(value, x, create_graph=True)
    (curve,) = torch.autograd.grad(slope, x)
    torch.testing.assert_close(value, x)
    torch.testing.assert_close(slope, torch.ones_like(x))
    assert curve.abs() < 1e-9
    assert method.smoothed(torch.zeros(1)) == pytest.approx(3 * 0.3 / 8)
    assert method.smoothed(torch.tensor([5.0])) == 5
