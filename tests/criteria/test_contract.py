"""What every criterion promises, and what each measures, against brute force."""

import copy
import inspect

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bayesprune import criteria
from bayesprune.config import RunConfig, load_config
from bayesprune.criteria import (
    CRITERIA,
    PFP,
    SNIP,
    BatchNormScale,
    Criterion,
    DataFree,
    Fisher,
    GeometricMedian,
    HRank,
    Iterative,
    Magnitude,
    Random,
    Taylor2016,
    Taylor2019,
)
from bayesprune.datasets import DataConfig
from bayesprune.errors import DataError, PlanError
from bayesprune.groups import ChannelGroups, trace_groups
from bayesprune.layers import SelectFeatures
from bayesprune.selection import KeepFraction, select

TIED = (GeometricMedian, HRank, PFP)  # of two units, or where ranks and shares are at their most
MEMBERS = [
    member
    for member in vars(criteria).values()
    if inspect.isclass(member) and issubclass(member, Criterion) and member is not Criterion
]


@pytest.fixture
def network(shared_network: nn.Module) -> nn.Module:
    return shared_network


@pytest.fixture
def data() -> TensorDataset:
    return TensorDataset(torch.randn(11, 1, 2, 2), torch.randint(3, (11,)))


@pytest.fixture
def groups(network: nn.Module) -> ChannelGroups:
    return trace_groups(network, torch.randn(1, 1, 2, 2))


def test_the_list_has_every_member() -> None:
    assert set(MEMBERS) == set(CRITERIA)
    assert len(MEMBERS) >= 12


@pytest.mark.parametrize("member", MEMBERS)
def test_is_written_to_a_config_and_read_back(member, tmp_path) -> None:
    config = RunConfig("bayesprune:digits", DataConfig("digits"), member(), KeepFraction(0.5))
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    again = load_config(tmp_path / "config.yaml")
    assert type(again.method) is member
    assert again.to_yaml() == config.to_yaml()


NEED_DATA = [Fisher, HRank, Iterative, PFP, SNIP, Taylor2016, Taylor2019]


@pytest.mark.parametrize("member", NEED_DATA)
def test_needs_data(member, network, groups) -> None:
    with pytest.raises(DataError, match=f"{member.__name__}: the loader is empty"):
        member().scores(network, groups, [])


@pytest.mark.parametrize("member", NEED_DATA)
def test_data_that_are_not_finite_are_named(member, network, groups, data) -> None:
    first, second = (data[i : i + 4] for i in (0, 4))
    broken = second[0].clone()
    broken[1] = torch.nan
    with pytest.raises(DataError, match=rf"NaN or inf in batch 1 \({member.__name__}\)"):
        member().scores(network, groups, [first, (broken, second[1])])


@pytest.mark.parametrize("member", [m for m in MEMBERS if m not in NEED_DATA])
def test_needs_no_data(member, network, groups) -> None:
    assert member().scores(network, groups, []).values


@pytest.mark.parametrize("member", MEMBERS)
def test_scores_every_unit(member, network, groups, data) -> None:
    scores = member().scores(network, groups, DataLoader(data, 4))
    # Only one group has a normalisation; what is not scored stays whole.
    scored = ["conv1"] if member is BatchNormScale else ["conv1", "conv3", "fc1"]
    assert list(scores.values) == scored
    for name, values in scores.values.items():
        assert values.shape == (groups[name].size,)
        assert values.is_floating_point()
        assert not values.requires_grad
        assert values.device.type == "cpu"
        assert member in TIED or len(values.unique()) == len(values)
    assert scores.measure
    assert member.reference
    plan = select(scores, KeepFraction(0.5), groups=groups)
    half = {"conv1": 2, "conv3": 1, "fc1": 3}
    assert plan.widths == {name: half[name] for name in scored}
    assert plan.method == scores.measure


@pytest.mark.parametrize("member", MEMBERS)
def test_groups_of_another_network_are_refused(member, groups, data) -> None:
    """Whether it has other layers, or the same ones in another width."""
    kinds = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    traced, wider = (
        nn.Sequential(nn.Linear(4, n), nn.BatchNorm1d(n), nn.Linear(n, 3)) for n in (6, 7)
    )
    narrow = trace_groups(traced.eval(), torch.zeros(1, 4))
    flat = TensorDataset(data.tensors[0].flatten(1), data.tensors[1])
    with pytest.raises(PlanError, match="conv1.weight: the groups are of another network"):
        member().scores(kinds, groups, DataLoader(data, 4))
    with pytest.raises(PlanError, match=r"0.weight: .* expected \(6, 4\), got \(7, 4\)"):
        member().scores(wider, narrow, DataLoader(flat, 4))


@pytest.mark.parametrize("member", MEMBERS)
def test_the_same_again_for_any_batches_modes_and_frozen_weights(
    member, network, groups, data
) -> None:
    expected = member().scores(network, groups, DataLoader(data, 4)).values
    torch.manual_seed(123)
    again = [
        member().scores(network, groups, DataLoader(data, 11)),
        member().scores(network, groups, DataLoader(data, 1)),
        member().scores(network.eval(), groups, DataLoader(data, 4)),
        member().scores(network.requires_grad_(False), groups, DataLoader(data, 4)),
    ]
    with torch.no_grad():
        again.append(member().scores(network, groups, DataLoader(data, 4)))
    for scores in again:
        for name, values in scores.values.items():
            torch.testing.assert_close(values, expected[name])


@pytest.mark.parametrize("member", MEMBERS)
def test_leaves_network_and_generator_alone(member, network, groups, data) -> None:
    batches = list(DataLoader(data, 4))
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    network.norm.eval()
    network.conv2.weight.requires_grad_(False)
    member().scores(network, groups, batches)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
    assert not network.norm.training
    assert not network.conv2.weight.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def columns(network: nn.Module, groups: ChannelGroups, name: str, unit: int, by: float):
    """A copy whose layers read one unit multiplied by a number."""
    network = copy.deepcopy(network).eval()
    with torch.no_grad():
        for slice_ in groups[name].slices:
            if slice_.role == "consumer":
                network.get_parameter(slice_.tensor)[:, slice_.units == unit] *= by
    return network


def test_fisher_is_half_the_mean_squared_derivative_by_the_gate(network, groups, data) -> None:
    network, (inputs, targets), h = network.double(), data.tensors, 1e-5
    inputs = inputs.double()
    scores = Fisher().scores(
        network, groups, [(inputs[:7], targets[:7]), (inputs[7:], targets[7:])]
    )
    for name, values in scores.values.items():
        for unit, value in enumerate(values):
            up, down = (
                F.cross_entropy(
                    columns(network, groups, name, unit, 1 + step)(inputs),
                    targets,
                    reduction="none",
                )
                for step in (h, -h)
            )
            derivative = (up - down) / (2 * h)
            torch.testing.assert_close(
                value.double(), derivative.square().mean() / 2, rtol=1e-4, atol=1e-9
            )


def test_fisher_takes_any_loss_that_examples_have(network, groups, data) -> None:
    """Squared errors, whose derivative by the logits is known."""
    inputs, targets = data.tensors
    wanted = F.one_hot(targets, 3).float()

    def loss(output, targets):
        return (output - targets).square().sum(1)

    batches = [(inputs[:4], wanted[:4]), (inputs[4:], wanted[4:])]
    scores = Fisher(loss).scores(network, groups, batches).values
    with pytest.raises(DataError, match=r"one loss per example, shape \(4,\); got float32 .* \(\)"):
        Fisher(F.mse_loss).scores(network, groups, batches[:1])
    with pytest.raises(DataError, match="cross-entropy expects .* int64 of shape"):
        Fisher().scores(network, groups, [(inputs, targets + 7)])
    h = 1e-5
    network, inputs, wanted = network.double(), inputs.double(), wanted.double()
    for unit, value in enumerate(scores["fc1"]):
        up, down = (
            loss(columns(network, groups, "fc1", unit, 1 + step)(inputs), wanted)
            for step in (h, -h)
        )
        expected = ((up - down) / (2 * h)).square().mean() / 2
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-9)


def test_fisher_of_a_unit_that_nobody_listens_to_is_zero(network, groups, data) -> None:
    deaf = columns(network, groups, "fc1", 2, 0.0)
    scores = Fisher().scores(deaf, groups, DataLoader(data, 4))
    assert scores.values["fc1"].argmin() == 2
    assert scores.values["fc1"][2] == 0


def test_scores_of_a_network_that_is_not_finite_are_refused(network, groups, data) -> None:
    with torch.no_grad():
        network.conv1.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(PlanError, match="conv1: expected a vector of finite scores .* NaN"):
        Fisher().scores(network, groups, [data[:]])


def test_magnitude_is_the_norm_of_all_filters_that_produce_the_unit(network, groups) -> None:
    scores = Magnitude().scores(network, groups, []).values
    weights = {
        name: p.detach().numpy().astype(np.float64) for name, p in network.named_parameters()
    }
    both = [weights[f"{name}.weight"].reshape(4, -1) for name in ("conv1", "conv2")]
    both = np.concatenate(both, 1)
    np.testing.assert_allclose(scores["conv1"], np.linalg.norm(both, axis=1), rtol=1e-5)
    blocks = weights["conv3.weight"].reshape(2, -1)
    np.testing.assert_allclose(scores["conv3"], np.linalg.norm(blocks, axis=1), rtol=1e-5)
    np.testing.assert_allclose(
        scores["fc1"], np.linalg.norm(weights["fc1.weight"], axis=1), rtol=1e-5
    )


def test_magnitude_finds_the_filters_of_transposed_layers() -> None:
    network = nn.Sequential(nn.ConvTranspose2d(2, 3, 2), nn.Conv2d(3, 1, 1))
    groups = trace_groups(network, torch.randn(1, 2, 4, 4))
    scores = Magnitude().scores(network, groups, []).values["0"]
    weight = network[0].weight.detach().numpy()
    expected = [np.sqrt((weight[:, unit] ** 2).sum()) for unit in range(3)]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_random_depends_on_its_seed_alone(network, groups) -> None:
    one, two = (Random(seed).scores(network, groups, []).values for seed in (1, 2))
    again = Random(1).scores(copy.deepcopy(network), groups, []).values
    assert all(torch.equal(one[name], again[name]) for name in groups)
    assert not any(torch.equal(one[name], two[name]) for name in groups)
    assert all(0 <= values.min() <= values.max() < 1 for values in one.values())


@pytest.mark.parametrize("member", [m for m in MEMBERS if m is not BatchNormScale])
def test_scores_selected_features(member, data) -> None:
    """Nothing produces them; what reads them stands in, or they stay whole."""
    network = nn.Sequential(SelectFeatures(4), nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 3))
    flat = TensorDataset(data.tensors[0].flatten(1), data.tensors[1])
    groups = trace_groups(network, flat.tensors[0])
    scores = member().scores(network, groups, DataLoader(flat, 4))
    assert scores.values["1"].shape == (5,)
    if member is DataFree:
        assert "0" not in scores.values
    else:
        values = scores.values["0"]
        assert member in TIED or len(values.unique()) == 4


@pytest.mark.parametrize("member", [m for m in MEMBERS if m is not BatchNormScale])
def test_scores_features_of_channels(member, data) -> None:
    """Both are read by the same weights, the channels as well as without a selection."""
    whole = (Iterative, Random, SNIP)  # where a unit's score depends on all other groups
    front = [nn.Conv2d(1, 3, 1), nn.Sigmoid(), nn.Flatten()]
    back = [nn.Linear(12, 5), nn.Sigmoid(), nn.Linear(5, 3)]
    network = nn.Sequential(*front, SelectFeatures(12), *back)
    groups = trace_groups(network, data.tensors[0])
    scores = member().scores(network, groups, DataLoader(data, 4))
    assert {"0", "4"} <= scores.values.keys()
    plain = nn.Sequential(*front, nn.Identity(), *back)
    without = member().scores(plain, trace_groups(plain, data.tensors[0]), DataLoader(data, 4))
    for name, values in without.values.items():
        assert member in (*TIED, *whole) or torch.allclose(scores.values[name], values)
    if member is not DataFree:
        assert scores.values["3"].shape == (12,)
