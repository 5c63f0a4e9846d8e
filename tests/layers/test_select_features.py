"""Selected features are units like any other."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bayesprune as bp
from bayesprune.cost import CostModel
from bayesprune.errors import ConfigError
from bayesprune.layers import SelectFeatures


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
        kept["inputs"] = sorted({*kept["inputs"], groups.read("inputs", kept)[0]})
    return bp.PruningPlan(kept, groups.sizes)


@pytest.mark.parametrize("seed", range(6))
def test_features_and_channels_leave_together(seed: int, tmp_path) -> None:
    net, x, groups = nested()
    plan = random_plan(groups, seed)
    alive = [f for f in plan.kept["inputs"] if f // 4 in plan.kept["conv"]]
    assert [f for f in groups.read("inputs", plan.kept) if f in plan.kept["inputs"]] == alive
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
    assert set(plan.kept["inputs"]) <= set(groups.read("inputs", plan.kept))
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
    assert (plan.kept["conv"], plan.kept["inputs"]) == ([1], [7])


def test_channels_without_features_stay_where_limits_say_so() -> None:
    _, _, groups = nested()
    values = {"conv": torch.arange(5.0), "inputs": torch.arange(20.0), "fc": torch.rand(6)}
    scores, rule = bp.ChannelScores(values, "example"), bp.TopK({"conv": 3, "inputs": 2, "fc": 6})
    assert bp.select(scores, rule, groups=groups).kept["conv"] == [4]
    assert bp.select(scores, rule, groups=groups, minimum=2).kept["conv"] == [2, 3, 4]


def test_switches_of_features_and_channels_are_fitted_together() -> None:
    net, x, groups = nested()
    loader = DataLoader(TensorDataset(x, torch.randint(3, (8,))), 4)
    switched = bp.SwitchedNetwork(net, groups, bp.switches.InformationBottleneck(), num_data=8)
    posterior = bp.fit_switches(
        switched, loader, epochs=1, constraint=bp.CostConstraint(macs=0.3), progress=False
    )
    plan = bp.select(posterior, bp.Budget(macs=0.3), groups=groups)
    assert set(plan.kept["inputs"]) <= set(groups.read("inputs", plan.kept))
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
