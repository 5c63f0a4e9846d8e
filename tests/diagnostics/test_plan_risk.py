"""Losses of a plan over the posterior, against networks folded by hand."""

import pytest
import torch
from torch.nn import functional

import bayesprune as bp
from bayesprune.diagnostics import plan_risk
from bayesprune.errors import ConfigError, PlanError

DRAWS = 4
KEPT = {"0": [1, 3], "2": [0, 2]}
SIZES = {"0": 4, "2": 3}


@pytest.fixture
def arguments(classifier):
    return classifier.posterior, classifier.network, classifier.groups, classifier.loader


@torch.no_grad()
def test_losses_are_those_of_masked_networks(classifier, arguments):
    plan = bp.PruningPlan(KEPT, SIZES)
    found = plan_risk(plan, *arguments, num_draws=DRAWS, seed=1)
    switched = bp.SwitchedNetwork(
        classifier.network, classifier.groups, bp.switches.Dirichlet(), num_data=1
    )
    gates = classifier.posterior.sample(DRAWS, seed=1)

    def loss(one):
        return functional.cross_entropy(switched.fold(one)(classifier.inputs), classifier.labels)

    for draw in range(DRAWS):
        one = {name: g[draw] for name, g in gates.items()}
        planned = {name: g * plan.masks()[name] for name, g in one.items()}
        cut = {name: g.abs().sort().values[-2] for name, g in one.items()}
        best = {name: torch.where(g.abs() >= cut[name], g, 0.0) for name, g in one.items()}
        assert found.whole[draw].item() == pytest.approx(loss(one).item(), abs=1e-5)
        assert found.loss[draw].item() == pytest.approx(loss(planned).item(), abs=1e-5)
        assert found.best[draw].item() == pytest.approx(loss(best).item(), abs=1e-5)
    assert found.expected_loss == pytest.approx(found.loss.mean().item())
    assert found.regret == pytest.approx((found.loss - found.best).mean().item())
    middle = found.rise.sort().values[1:3].mean().item()
    assert found.probability(middle) == 0.5


def test_a_plan_that_keeps_all_has_no_rise_and_no_regret(arguments):
    whole = bp.PruningPlan({"0": [0, 1, 2, 3], "2": [0, 1, 2]}, SIZES)
    found = plan_risk(whole, *arguments, num_draws=2)
    assert (found.rise == 0).all()
    assert found.regret == 0
    assert found.probability(1e-9) == 1
    part = plan_risk(bp.PruningPlan({"2": [0, 1, 2]}, {"2": 3}), *arguments, num_draws=2)
    assert torch.equal(part.loss, found.whole)


def test_refusals(gaussian, arguments):
    plan = bp.PruningPlan(KEPT, SIZES)
    with pytest.raises(ConfigError, match="examples: expected an integer of at least 1, got 0"):
        plan_risk(plan, *arguments, examples=0)
    with pytest.raises(PlanError, match="the plan is for another network"):
        plan_risk(bp.PruningPlan({"fc": [0]}, {"fc": 4}), *arguments)
    small = bp.SwitchPosterior({"0": gaussian.prototype.bind(4)}, [])
    with pytest.raises(PlanError, match=r"a plan of .* for a posterior of {'0': 4}"):
        plan_risk(plan, small, *arguments[1:])
