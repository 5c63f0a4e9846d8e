"""Units as vectors, against loops over entries."""

import copy

import pytest
import torch
from torch import nn

from bayesprune.errors import ConfigError
from bayesprune.groups import trace_groups
from bayesprune.penalties import GroupLasso
from bayesprune.penalties._units import Units
from bayesprune.plan import PruningPlan
from bayesprune.surgery import remove_channels


def vector(network: nn.Module, group: str, unit: int) -> torch.Tensor:
    """The vector of a unit of `Shared`, written out by hand."""
    conv1, norm, conv2 = network.conv1.weight, network.norm.weight, network.conv2.weight
    conv3, grouped, fc1 = network.conv3.weight, network.grouped.weight, network.fc1.weight
    parts = {
        # What conv2 reads belongs to the same units as what it produces, and counts once.
        "conv1": lambda u: [
            conv1[u] * norm[u].abs(), conv2[u], conv3[:, u], fc1[:, 4 * u : 4 * u + 4],
        ],
        "conv3": lambda u: [
            conv3[2 * u : 2 * u + 2],
            grouped[4 * u : 4 * u + 4],
            fc1[:, 16 + 16 * u : 32 + 16 * u],
        ],
        "fc1": lambda u: [fc1[u], network.fc2.weight[:, u]],
    }  # fmt: skip
    return torch.cat([part.flatten() for part in parts[group](unit)]).detach()


def test_norms_sizes_and_matrices_are_those_of_the_vectors(network, groups) -> None:
    units = Units(network, groups)
    assert list(units) == ["conv1", "conv3", "fc1"]
    for name, group in units.items():
        matrix = group.matrix()
        for unit in range(group.size):
            expected = vector(network, name, unit)
            torch.testing.assert_close(group.norms()[unit], expected.norm())
            assert group.sizes[unit] == len(expected)
            entries = matrix[unit].abs().sort().values
            entries = entries[entries > 0]
            torch.testing.assert_close(entries, expected.abs().sort().values)


def test_a_scale_behind_a_concatenation_is_in_no_vector() -> None:
    """Its first entries belong to the first branch, but it is not the filter's own."""

    class Concatenated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(2, 3), nn.Linear(2, 4)
            self.norm, self.out = nn.BatchNorm1d(7), nn.Linear(7, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.norm(torch.cat([self.left(x), self.right(x)], 1)))

    network = Concatenated()
    nn.init.normal_(network.norm.weight)
    units = Units(network, trace_groups(network, torch.randn(1, 2)), extent="filter")
    for name in ("left", "right"):
        norms = network.get_submodule(name).weight.norm(dim=1).detach()
        torch.testing.assert_close(units[name].norms(), norms)
        units[name].scale_(torch.full((len(norms),), 0.5))
        torch.testing.assert_close(units[name].norms(), norms / 2)


def test_a_filter_leaves_out_what_reads_it(network, groups) -> None:
    units = Units(network, groups, extent="filter")
    expected = network.conv1.weight.flatten(1).norm(dim=1) * network.norm.weight.abs()
    expected = (expected.square() + network.conv2.weight.flatten(1).square().sum(1)).sqrt()
    torch.testing.assert_close(units["conv1"].norms(), expected)
    torch.testing.assert_close(units["fc1"].norms(), network.fc1.weight.norm(dim=1))


def test_scaling_multiplies_the_norms_and_spares_what_is_normalised(network, groups) -> None:
    units, filters = Units(network, groups), network.conv1.weight.clone()
    group, factors = units["conv1"], torch.tensor([0.5, 1.0, 0.0, 2.0])
    before, signs = group.norms(), network.norm.weight.sign()
    group.scale_(factors)
    torch.testing.assert_close(group.norms(), before * factors)
    assert torch.equal(network.conv1.weight, filters)
    assert torch.equal(network.norm.weight.sign(), signs * factors.sign())


def test_writing_what_was_read_changes_nothing(network, groups) -> None:
    units, before = Units(network, groups), copy.deepcopy(network.state_dict())
    for group in units.values():
        group.write_(group.matrix())
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_writing_gives_the_vectors_written(network, groups) -> None:
    units = Units(network, groups)
    lengths = network.conv1.weight.flatten(1).norm(dim=1)
    for group in units.values():
        wanted = group.matrix() * (torch.rand_like(group.matrix()) < 0.6) * 0.7
        wanted[0] = 0
        group.write_(wanted)
        torch.testing.assert_close(group.matrix(), wanted)
        assert group.norms()[0] == 0
    # The scale of the normalisation has taken the length of the filter.
    torch.testing.assert_close(network.conv1.weight.flatten(1).norm(dim=1), lengths)


def test_units_without_norm_can_be_removed_exactly(network, groups) -> None:
    network.eval()
    x, units = torch.randn(5, 1, 2, 2), Units(network, groups)
    for name, dead in (("conv1", 2), ("conv3", 0), ("fc1", 4)):
        factors = torch.ones(units[name].size)
        factors[dead] = 0
        units[name].scale_(factors)
    units.bury_({name: norms == 0 for name, norms in units.norms().items()})
    kept = {name: (norms > 0).nonzero()[:, 0].tolist() for name, norms in units.norms().items()}
    assert {name: len(k) for name, k in kept.items()} == {"conv1": 3, "conv3": 1, "fc1": 4}
    small = remove_channels(network, PruningPlan(kept, groups.sizes), x[:1])
    torch.testing.assert_close(small(x), network(x))


def test_multipliers(network, groups) -> None:
    sizes = Units(network, groups, "size").multipliers
    torch.testing.assert_close(sizes["fc1"], torch.full((5,), 51.0).sqrt())
    assert torch.equal(Units(network, groups, "none").multipliers["conv3"], torch.ones(2))
    macs = Units(network, groups, "macs").multipliers
    # Each of 4 positions multiplies by every weight of a convolution, one by one of a linear layer.
    conv1 = 4 * (9 + 36 + 4) + 4 * 5
    conv3 = 4 * (8 + 8) + 5 * 16
    expected = torch.tensor([conv1] * 4 + [conv3] * 2 + [51] * 5).float()
    got = torch.cat([macs["conv1"], macs["conv3"], macs["fc1"]])
    torch.testing.assert_close(got, expected / expected.mean())


def test_an_unknown_scale_is_refused() -> None:
    with pytest.raises(ConfigError, match="GroupLasso.scale: expected one of size, macs, none"):
        GroupLasso(scale="width")


def test_a_transposed_layer() -> None:
    network = nn.Sequential(nn.ConvTranspose2d(2, 3, 2), nn.ReLU(), nn.Conv2d(3, 1, 1))
    units = Units(network, trace_groups(network, torch.randn(1, 2, 4, 4)))
    first, last = network[0].weight, network[2].weight
    for unit in range(3):
        expected = (first[:, unit].square().sum() + last[:, unit].square().sum()).sqrt()
        torch.testing.assert_close(units["0"].norms()[unit], expected)
