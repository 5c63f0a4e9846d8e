"""Selected features are units like any other."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bayesprune as bp
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


def test_channels_that_are_selected_from_stay() -> None:
    net = nn.Sequential(nn.Linear(4, 6), *network())
    groups = bp.trace_groups(net, torch.randn(2, 4))
    assert groups.sizes == {"1": 6, "2": 5}
    assert "picked by position by index_select" in groups.frozen["0"]


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
