"""Selected features are units like any other."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bayesprune as bp
from bayesprune.cost import CostModel
from bayesprune.errors import BudgetError, ConfigError, PlanError, TraceError
from bayesprune.layers import SelectFeatures
from bayesprune.plan import Limits
from bayesprune.selection.choice import choose
from bayesprune.selection.context import Context
from bayesprune.timing import LatencyModel


def network() -> nn.Module:
    return nn.Sequential(SelectFeatures(6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def test_features_are_units() -> None:
    groups = bp.trace_groups(network(), torch.randn(2, 6))
    assert groups.sizes == {"0": 6, "1": 5}
    assert [(s.tensor, s.axis, s.role) for s in groups["0"].slices] == [
        ("0.index", 0, "producer"),
        ("1.weight", 1, "consumer"),
    ]


def test_removed_features_are_read_no_more() -> None:
    net, x = network(), torch.randn(4, 6)
    plan = bp.PruningPlan({"0": [1, 4], "1": [0, 2, 3]}, {"0": 6, "1": 5})
    small = bp.remove_channels(net, plan, x)
    assert small[0].index.tolist() == [1, 4]
    assert bp.cost(small, x).macs == 2 * 3 + 3 * 3
    silenced = x.clone()
    silenced[:, [0, 2, 3, 5]] = 0
    with torch.no_grad():
        net[3].weight[:, [1, 4]] = 0
    assert torch.allclose(small(x), net(silenced), atol=1e-6)
    again = bp.remove_channels(
        small, bp.PruningPlan({"0": [1], "1": [0, 1, 2]}, {"0": 2, "1": 3}), x
    )
    assert again[0].index.tolist() == [4]


def test_survives_the_way_to_disk(tmp_path) -> None:
    net, x = network(), torch.randn(4, 6)
    plan = bp.PruningPlan({"0": [0, 5], "1": [0, 2, 3]}, {"0": 6, "1": 5})
    small = bp.remove_channels(net, plan, x)
    bp.save_pruned(tmp_path / "small.safetensors", small, plan)
    again = bp.load_pruned(tmp_path / "small.safetensors", network(), x)
    assert torch.equal(again(x), small(x))
    assert repr(again[0]) == "SelectFeatures(2 selected)"


class Nested(nn.Module):
    """Features of channels: five channels with four positions each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 5, 2)
        self.inputs = SelectFeatures(5 * 4)
        self.fc = nn.Linear(5 * 4, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(torch.tanh(self.conv(x)), 1)
        return self.last(torch.tanh(self.fc(self.inputs(x))))


def nested() -> tuple[nn.Module, Tensor, bp.ChannelGroups]:
    net, x = Nested(), torch.randn(8, 1, 3, 3)
    return net, x, bp.trace_groups(net, x)


def test_features_are_units_within_channels() -> None:
    _, _, groups = nested()
    assert groups.sizes == {"conv": 5, "inputs": 20, "fc": 6}
    assert {name: group.within for name, group in groups.items()} == {
        "conv": (),
        "inputs": ("conv",),
        "fc": (),
    }
    assert "inputs: 20 units, within conv, read by fc" in repr(groups)
    assert "inputs within conv" in groups._repr_html_()
    owned = {(s.tensor, s.axis): (s.role, s.units.tolist()) for s in groups["conv"].slices}
    fours = [place // 4 for place in range(20)]
    assert owned["inputs.inputs", 0] == owned["inputs.index", 0] == ("passthrough", fours)
    assert owned["fc.weight", 1] == ("consumer", fours)


def random_plan(groups: bp.ChannelGroups, seed: int) -> bp.PruningPlan:
    """Some units of each group, at least one feature of a channel among them."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for name, size in groups.sizes.items():
        count = int(torch.randint(1, size + 1, (), generator=generator))
        kept[name] = sorted(torch.randperm(size, generator=generator)[:count].tolist())
    if groups["inputs"].within:
        kept["inputs"] = sorted({*kept["inputs"], min(groups.read("inputs", kept))})
    return bp.PruningPlan(kept, groups.sizes)


@pytest.mark.parametrize("seed", range(6))
def test_features_and_channels_leave_together(seed: int, tmp_path) -> None:
    net, x, groups = nested()
    plan = random_plan(groups, seed)
    alive = [f for f in plan.kept["inputs"] if f // 4 in plan.kept["conv"]]
    assert groups.read("inputs", plan.kept) & set(plan.kept["inputs"]) == set(alive)
    small = bp.remove_channels(net, plan, x)
    assert small.conv.out_channels == len(plan.kept["conv"])
    assert small.fc.in_features == len(small.inputs.index) == len(alive)
    assert torch.equal(small.fc.weight, net.fc.weight[plan.kept["fc"]][:, alive])

    # By hand: what is not kept is zero where the next layer reads it.
    hidden = torch.flatten(torch.tanh(net.conv(x)), 1)
    hidden = hidden * torch.zeros(20).index_fill(0, torch.tensor(alive), 1)
    hidden = torch.tanh(net.fc(hidden))
    hidden = hidden * torch.zeros(6).index_fill(0, torch.tensor(plan.kept["fc"]), 1)
    assert torch.allclose(small(x), net.last(hidden), atol=1e-6)

    bp.save_pruned(tmp_path / "small.safetensors", small, plan)
    for example in (None, x):
        again = bp.load_pruned(tmp_path / "small.safetensors", Nested(), example)
        assert torch.equal(again(x), small(x))
    # And once more, from the smaller network.
    later = bp.trace_groups(small, x)
    assert later.sizes["inputs"] == len(alive)
    second = random_plan(later, seed)
    smaller = bp.remove_channels(small, second, x)
    masks = bp.gating.GatedNetwork(small, later)
    assert torch.allclose(smaller(x), masks(x, second.masks()), atol=1e-6)


def test_gates_of_features_and_channels_multiply() -> None:
    net, x, groups = nested()
    gates = {name: torch.rand(size) for name, size in groups.sizes.items()}
    hidden = torch.flatten(torch.tanh(net.conv(x)), 1)
    hidden = hidden * gates["inputs"] * gates["conv"].repeat_interleave(4)
    expected = net.last(torch.tanh(net.fc(hidden)) * gates["fc"])
    gated = bp.gating.GatedNetwork(net, groups)
    assert torch.allclose(gated(x, gates), expected, atol=1e-6)
    assert torch.allclose(gated.fold(gates)(x), expected, atol=1e-6)
    each = {name: gate.expand(len(x), -1) for name, gate in gates.items()}
    assert torch.allclose(gated(x, each), expected, atol=1e-6)


def test_expected_cost_counts_a_feature_with_its_channel() -> None:
    """The mean over all choices of channels and features, each by its probability."""
    net = nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.Flatten(), SelectFeatures(4), nn.Linear(4, 3), nn.Linear(3, 2)
    )
    groups = bp.trace_groups(net, torch.randn(1, 1, 2, 3))
    assert groups.sizes == {"0": 2, "2": 4, "3": 3}
    price = CostModel(groups).macs
    keep = {"0": torch.tensor([0.3, 0.9]), "2": torch.tensor([0.2, 0.5, 0.7, 1.0])}
    mean = 0.0
    for mask in itertools.product([0, 1], repeat=6):
        chosen = torch.tensor(mask)
        odds = torch.cat(list(keep.values()))
        probability = torch.where(chosen == 1, odds, 1 - odds).prod()
        kept = {"0": chosen[:2].nonzero()[:, 0], "2": chosen[2:].nonzero()[:, 0]}
        mean += float(probability) * price({n: k.tolist() for n, k in kept.items()})
    assert price.expected(keep).item() == pytest.approx(mean)


def test_channels_of_features_that_must_stay_do_so() -> None:
    class Shown(Nested):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = torch.flatten(torch.tanh(self.conv(x)), 1)
            x = self.inputs(x)
            return self.last(torch.tanh(self.fc(x))), x

    groups = bp.trace_groups(Shown(), torch.randn(2, 1, 3, 3))
    assert groups.sizes == {"fc": 6}
    assert groups.frozen["conv"] == "a feature that is selected from it must stay"


def test_features_of_several_channels_that_are_one_unit_keep_the_channels() -> None:
    class Crossed(Nested):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.flatten(torch.tanh(self.conv(x)), 1)
            x = self.inputs(x) + self.inputs(x).flip(1)
            return self.last(torch.tanh(self.fc(x)))

    net, x = Crossed(), torch.randn(2, 1, 3, 3)
    groups = bp.trace_groups(net, x)
    # Only the middle channel meets no other.
    assert groups.sizes == {"conv": 1, "inputs": 10, "fc": 6}
    plan = bp.PruningPlan({"inputs": [0, 3], "fc": [1, 2]}, {"inputs": 10, "fc": 6})
    assert len(bp.remove_channels(net, plan, x).inputs.index) == 4


def test_a_selection_from_a_selection() -> None:
    net = nn.Sequential(nn.Linear(4, 3), SelectFeatures(3), SelectFeatures(3), nn.Linear(3, 2))
    x = torch.randn(5, 4)
    groups = bp.trace_groups(net, x)
    assert {name: set(group.within) for name, group in groups.items()} == {
        "0": set(),
        "1": {"0"},
        "2": {"0", "1"},
    }
    plan = bp.PruningPlan({"0": [0, 2], "1": [1, 2], "2": [0, 2]}, dict.fromkeys("012", 3))
    small = bp.remove_channels(net, plan, x)
    assert [len(small[1].index), small[1].index.tolist(), small[2].index.tolist()] == [1, [1], [0]]
    assert torch.allclose(small(x), net[3].bias + net[0](x)[:, [2]] @ net[3].weight[:, [2]].T)


@pytest.mark.parametrize("share", [0.6, 0.3, 0.1])
@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("rule", [bp.Budget, bp.GlobalRank])
def test_plans_hold_no_feature_without_its_channel(share, measured, rule) -> None:
    net, x, groups = nested()
    scores = bp.ChannelScores({n: torch.rand(size) for n, size in groups.sizes.items()}, "random")
    data = DataLoader(TensorDataset(x, torch.randint(3, (8,))), 4)
    given = {"network": net, "loader": data} if measured else {}
    plan = bp.select(scores, rule(macs=share), groups=groups, **given)
    assert set(plan.kept["inputs"]) <= groups.read("inputs", plan.kept)
    assert plan.kept["conv"] == sorted({feature // 4 for feature in plan.kept["inputs"]})
    small = bp.remove_channels(net, plan, x)
    assert plan.cost == bp.cost(small, x)
    assert plan.cost.macs <= share * bp.cost(net, x).macs
    later = bp.trace_groups(small, x).sizes
    assert later == {name: len(units) for name, units in plan.kept.items()}


def test_something_is_read_whatever_the_scores_say() -> None:
    _, _, groups = nested()
    values = {"conv": torch.eye(5)[1], "inputs": torch.arange(20.0), "fc": torch.rand(6)}
    plan = bp.select(bp.ChannelScores(values, "example"), bp.TopK(1), groups=groups)
    # The best feature of all is of another channel, so the best one of this channel is read.
    assert plan.kept["conv"] == [1]
    assert plan.kept["inputs"] == [7]


def test_limits_hold_and_all_that_they_keep_is_read() -> None:
    _, _, groups = nested()
    values = {"conv": torch.arange(5.0), "inputs": torch.arange(20.0), "fc": torch.rand(6)}
    scores, rule = bp.ChannelScores(values, "example"), bp.TopK({"conv": 3, "inputs": 2, "fc": 6})

    def kept(**limits: Any) -> tuple[list[int], list[int]]:
        plan = bp.select(scores, rule, groups=groups, **limits)
        return plan.kept["conv"], plan.kept["inputs"]

    assert kept() == ([4], [18, 19])
    assert kept(minimum={"conv": 2}) == ([3, 4], [15, 18, 19])
    assert kept(minimum={"inputs": 4}) == ([4], [16, 17, 18, 19])
    assert kept(minimum={"inputs": 5}) == ([3, 4], [15, 16, 17, 18, 19])
    assert kept(protect=["conv"]) == ([0, 1, 2, 3, 4], [3, 7, 11, 15, 18, 19])
    assert kept(protect=["inputs"]) == (list(range(5)), list(range(20)))


@pytest.mark.parametrize("rule", [bp.Budget, bp.GlobalRank])
@pytest.mark.parametrize("share", [0.3, 0.1, 0.05])
def test_no_budget_is_exceeded_or_left_without_a_word(rule, share: float) -> None:
    """Whether scores of channels and of their features agree or not."""
    net, x, groups = nested()
    total = bp.cost(net, x).params
    values = {"conv": torch.arange(5.0), "inputs": torch.arange(20.0), "fc": torch.rand(6)}
    opposed = {**values, "inputs": values["inputs"].flip(0)}
    drawn = [{n: torch.rand(size) ** 4 for n, size in groups.sizes.items()} for _ in range(20)]
    for scored in (values, opposed, *drawn):
        scores = bp.ChannelScores(scored, "example")
        try:
            plan = bp.select(scores, rule(params=share), groups=groups)
        except BudgetError:
            continue
        assert plan.cost is not None
        assert plan.cost.params <= share * total
        assert plan.note is not None or plan.cost.params >= 0.98 * share * total
        assert plan.note is None or not plan.note.endswith(": ")
        assert bp.cost(bp.remove_channels(net, plan, x), x) == plan.cost


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("rule", [bp.KeepFraction(0.5), bp.TopK(3), bp.Budget(macs=0.5)])
@pytest.mark.parametrize("limits", [{}, {"minimum": {"conv": 3}}, {"protect": ["conv"]}])
def test_rounds_find_what_earlier_rounds_have_left(seed: int, rule, limits) -> None:
    net, x, groups = nested()
    torch.manual_seed(seed)
    context = Context(groups, Limits(**limits))
    for number in (1, 2, 3):
        scores = bp.ChannelScores({n: torch.rand(size) for n, size in groups.sizes.items()}, "")
        chosen = choose(scores, rule.at(number / 3, context), Context(groups, context.limits))
        net = bp.remove_channels(net, chosen, x)
        groups = bp.trace_groups(net, x)
        assert groups.sizes == chosen.widths


def test_limits_that_no_budget_fits_are_found_before_there_are_scores() -> None:
    """Each channel that stays has a feature that stays."""
    _, _, groups = nested()
    context = Context(groups, Limits(protect=["conv"]))
    smallest = 5 * 16 + 5 * 1 + 3
    bp.Budget(macs=smallest).check(context)
    with pytest.raises(BudgetError, match=f"inputs at least 5.* has {smallest}"):
        bp.Budget(macs=smallest - 1).check(context)


def test_features_may_be_gone_from_a_channel_that_is_read_elsewhere() -> None:
    class Twice(Nested):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Conv2d(5, 2, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.tanh(self.conv(x))
            first = self.last(torch.tanh(self.fc(self.inputs(torch.flatten(y, 1)))))
            return first + self.other(y).sum()

    net, x = Twice(), torch.randn(2, 1, 3, 3)
    groups = bp.trace_groups(net, x)
    kept = {"conv": [0, 1], "inputs": [4, 5], "fc": [0, 1]}
    sizes = {name: groups.sizes[name] for name in kept}
    net = bp.remove_channels(net, bp.PruningPlan(kept, sizes), x)
    groups = bp.trace_groups(net, x)
    assert {name: groups.sizes[name] for name in kept} == {"conv": 2, "inputs": 2, "fc": 2}
    values = {"conv": torch.tensor([1.0, 0.0]), "inputs": torch.rand(2), "fc": torch.rand(2)}
    plan = bp.select(bp.ChannelScores(values, "example"), bp.TopK(1), groups=groups)
    assert plan.kept["conv"] == [0, 1]  # the second for its feature
    assert len(plan.kept["inputs"]) == 1


@pytest.mark.parametrize("seed", range(10))
def test_chosen_from_a_selection_of_a_selection(seed: int) -> None:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 3), SelectFeatures(3), SelectFeatures(3), nn.Linear(3, 2))
    groups = bp.trace_groups(net, torch.randn(2, 4))
    scores = bp.ChannelScores({n: torch.rand(3) for n in groups}, "random")
    plan = bp.select(scores, bp.TopK(2), groups=groups)
    assert plan.kept["0"] == plan.kept["1"] == plan.kept["2"]


def test_channels_within_themselves_stay() -> None:
    class Cycle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 3)
            self.one, self.two = SelectFeatures(3), SelectFeatures(3)
            self.last = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.last(x + self.two(torch.relu(self.one(x))))

    with pytest.raises(TraceError, match="no channel can be removed"):
        bp.trace_groups(Cycle(), torch.randn(2, 4))


def test_normalised_features_make_their_channels_inexact() -> None:
    net = nn.Sequential(
        *(nn.Conv2d(1, 5, 2), nn.Flatten(), SelectFeatures(20), nn.LayerNorm(20)),
        *(nn.Linear(20, 6), nn.ReLU(), nn.Linear(6, 3)),
    )
    x = torch.randn(8, 1, 3, 3)
    groups = bp.trace_groups(net, x)
    exact = {name: group.exact for name, group in groups.items()}
    assert exact == {"0": False, "2": False, "4": True}
    small = bp.remove_channels(net, bp.PruningPlan({"0": [0, 3]}, {"0": 5}), x)
    assert small[4].in_features == 8


def test_a_selection_of_the_first_channels_keeps_the_channels() -> None:
    """It was not made for its input, so that nobody knows what to number."""
    net = nn.Sequential(nn.Linear(4, 6), SelectFeatures(4), nn.Linear(4, 5), nn.Linear(5, 2))
    groups = bp.trace_groups(net, torch.randn(3, 4))
    assert groups.sizes == {"1": 4, "2": 5}


def test_measured_times_are_of_the_network_that_is_left() -> None:
    net, x, groups = nested()
    model = LatencyModel(net, groups, x, measure=lambda n, e: float(bp.cost(n, e).macs))
    apart, along = {"conv": [0, 1], "inputs": [4, 8, 9]}, {"conv": [0, 1], "inputs": [0, 1, 4]}
    assert model.actual(along) - model.actual(apart) == pytest.approx(2 * 6)


def test_merging_does_not_mix_up_positions() -> None:
    net, _, groups = nested()
    plan = bp.PruningPlan({"conv": [0, 1]}, {"conv": 5})
    with pytest.raises(PlanError, match="reads selected features of conv"):
        bp.criteria.DataFree().merge(net, groups, plan)


def test_a_state_has_no_more_tensors_than_before() -> None:
    assert list(SelectFeatures(3).state_dict()) == ["index"]


def test_switches_of_features_and_channels_are_fitted_together() -> None:
    net, x, groups = nested()
    loader = DataLoader(TensorDataset(x, torch.randint(3, (8,))), 4)
    switched = bp.SwitchedNetwork(net, groups, bp.switches.InformationBottleneck(), num_data=8)
    posterior = bp.fit_switches(
        switched, loader, epochs=1, constraint=bp.CostConstraint(macs=0.3), progress=False
    )
    plan = bp.select(posterior, bp.Budget(macs=0.3), groups=groups)
    assert set(plan.kept["inputs"]) <= groups.read("inputs", plan.kept)
    assert plan.cost.macs <= 0.3 * bp.cost(net, x).macs


def test_switches_find_the_features_that_matter() -> None:
    x = torch.randn(512, 6)
    loader = DataLoader(TensorDataset(x, (x[:, 2] > x[:, 3]).long()), 32, shuffle=True)
    net = nn.Sequential(SelectFeatures(6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(10):
        for inputs, targets in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs), targets).backward()
            optimizer.step()
    groups = bp.trace_groups(net, x)
    switched = bp.SwitchedNetwork(net, groups, bp.switches.Dirichlet(0.1), num_data=512)
    posterior = bp.fit_switches(switched, loader, epochs=5, progress=False)
    best = posterior.mean["0"].topk(2).indices
    assert set(best.tolist()) == {2, 3}


@pytest.mark.parametrize("features", [0, 2.0, True, "4"])
def test_refuses_other_sizes(features: object) -> None:
    with pytest.raises(ConfigError, match=r"SelectFeatures\.features: expected an integer"):
        SelectFeatures(features)  # type: ignore[arg-type]


def test_keeps_further_dimensions() -> None:
    x: Tensor = torch.randn(2, 3, 4)
    assert torch.equal(SelectFeatures(3)(x), x)
