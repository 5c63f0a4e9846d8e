"""The rule that removes as much as can go at a stated risk, where the risk is known."""

import math

import pytest
import torch
from torch import nn

import bayesprune as bp
from bayesprune._describe import build, describe
from bayesprune.errors import ConfigError, PlanError
from bayesprune.selection import ChannelScores, Context
from bayesprune.switches import InformationBottleneck

LOCS = {"left": [0.1, 0.4, 3.2, 0.2], "right": [1.6, 0.8, 6.4]}
SD = 0.2


class Sum(nn.Module):
    """Puts out the sum of all gates, whatever comes in."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(1, 4), nn.Linear(1, 3), nn.Linear(7, 1)
        with torch.no_grad():
            for layer, weight, bias in ((self.left, 0, 1), (self.right, 0, 1), (self.head, 1, 0)):
                layer.weight.fill_(weight)
                layer.bias.fill_(bias)

    def forward(self, x):
        return self.head(torch.cat([self.left(x).relu(), self.right(x).relu()], 1))


def missing(output, targets):
    """A loss that rises by a channel's gate when the channel goes."""
    return -output.mean()


@pytest.fixture(scope="module")
def known():
    """Network, groups and data; gates are independent N(loc, SD²)."""
    network = Sum()
    switches = {}
    for name, locs in LOCS.items():
        switches[name] = InformationBottleneck().bind(len(locs))
        with torch.no_grad():
            switches[name].loc = torch.tensor(locs)
            switches[name].log_scale = torch.full((len(locs),), math.log(SD))
    posterior = bp.SwitchPosterior(switches, [])
    data = {
        "groups": bp.trace_groups(network, torch.zeros(1, 1)),
        "network": network,
        "loader": [(torch.zeros(4, 1), torch.zeros(4))],
        "loss": missing,
    }
    return posterior, data


def probability(count, delta):
    """P(rise < delta) if the `count` channels with the smallest mean gates go, in closed form."""
    locs = sorted(loc for locs in LOCS.values() for loc in locs)[:count]
    sd = SD * math.sqrt(count)
    return 0.5 * (1 + math.erf((delta - sum(locs)) / sd / math.sqrt(2)))


@pytest.mark.parametrize(
    ("delta", "level", "count"),
    [(1.0, 0.95, 2), (1.0, 0.7, 3), (2.0, 0.95, 3), (4.0, 0.95, 5), (0.05, 0.9, 0)],
)
def test_removes_what_the_closed_form_allows(known, delta, level, count):
    # Far enough from the level on both sides for 400 draws to tell.
    error = 4 * math.sqrt(level * (1 - level) / 400)
    assert count == 0 or probability(count, delta) > level + error / 2
    assert count == 5 or probability(count + 1, delta) < level - error
    posterior, data = known
    plan = bp.select(posterior, bp.RiskBudget(delta, level, num_draws=400), **data)
    lowest = sorted((loc, name, i) for name, locs in LOCS.items() for i, loc in enumerate(locs))
    gone = {(name, i) for _, name, i in lowest[:count]}
    expected = {
        name: [i for i in range(len(locs)) if (name, i) not in gone] for name, locs in LOCS.items()
    }
    assert plan.kept == expected


def test_limits_hold_and_steps_are_shares_of_a_group(known):
    posterior, data = known
    plan = bp.select(posterior, bp.RiskBudget(100.0, step=0.5), minimum={"left": 2}, **data)
    assert plan.widths == {"left": 2, "right": 1}
    plan = bp.select(posterior, bp.RiskBudget(100.0), protect=["right"], **data)
    assert plan.widths == {"left": 1, "right": 3}


def test_needs_a_posterior_and_data(known):
    posterior, data = known
    groups = data["groups"]
    scores = ChannelScores({name: torch.tensor(locs) for name, locs in LOCS.items()}, "by hand")
    with pytest.raises(PlanError, match="expected posterior draws .* measuring 'by hand'"):
        bp.select(scores, bp.RiskBudget(1.0), **data)
    with pytest.raises(PlanError, match="expected network and loader"):
        bp.select(posterior, bp.RiskBudget(1.0), groups=groups)
    with pytest.raises(PlanError, match="expected network and loader"):
        bp.RiskBudget(1.0).select(posterior.scores("draws:3"), Context(groups))


def test_settings():
    for options, got in (
        ({"delta": 0.0}, "delta: .* got 0.0"),
        ({"delta": math.nan}, "delta: .* got nan"),
        ({"delta": 1.0, "probability": 1.0}, "probability: .* got 1.0"),
        ({"delta": 1.0, "step": 1.0}, "step: .* got 1.0"),
        ({"delta": 1.0, "num_draws": 0}, "num_draws: expected an integer of at least 1, got 0"),
    ):
        with pytest.raises(ConfigError, match=rf"RiskBudget\.{got}"):
            bp.RiskBudget(**options)
    rule = build(describe(bp.RiskBudget(0.1, 0.9, 50, 0.2)), bp.RiskBudget)
    assert (rule.delta, rule.probability, rule.num_draws, rule.step) == (0.1, 0.9, 50, 0.2)
    assert rule.measure == "draws:50"
