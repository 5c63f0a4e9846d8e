"""Each criterion against its definition, computed by loops, and against peers."""

import copy
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_pruning
from scipy import stats
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from bayesprune import criteria
from bayesprune.criteria._units import minibatches, split_units
from bayesprune.errors import ConfigError, DataError, PlanError
from bayesprune.groups import ChannelGroups, trace_groups
from bayesprune.plan import PruningPlan
from bayesprune.surgery import remove_channels

IMAGE = (2, 6, 4)


class Network(nn.Module):
    """Two convolutions, one read by another, one flattened, and a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 3, 3, padding=1, stride=2)
        self.fc1 = nn.Linear(3 * 6, 5)
        self.fc2 = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.conv1(x)))
        x = F.relu(self.conv2(x))
        return self.fc2(torch.tanh(self.fc1(x.flatten(1))))

    def readings(self, x: Tensor) -> dict[str, Tensor]:
        """What is read of each group."""
        first = torch.tanh(self.norm(self.conv1(x)))
        second = F.relu(self.conv2(first))
        third = torch.tanh(self.fc1(second.flatten(1)))
        return {"conv1": first, "conv2": second, "fc1": third}


READERS = {"conv1": "conv2", "conv2": "fc1", "fc1": "fc2"}


@pytest.fixture
def network() -> Network:
    network = Network()
    nn.init.normal_(network.norm.weight)
    nn.init.normal_(network.norm.bias)
    return network.eval()


@pytest.fixture
def groups(network: nn.Module) -> ChannelGroups:
    return trace_groups(network, torch.randn(1, *IMAGE))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(11, *IMAGE), torch.randint(3, (11,))


def columns(network: nn.Module, name: str, unit: int) -> Tensor:
    """A view of all weights that read a unit."""
    weight = network.get_submodule(READERS[name]).weight
    return weight[:, unit * 6 : unit * 6 + 6] if name == "conv2" else weight[:, unit]


def gated(network: nn.Module, name: str, unit: int, gate: float) -> nn.Module:
    network = copy.deepcopy(network)
    with torch.no_grad():
        columns(network, name, unit).mul_(gate)
    return network


def losses(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(network(batch[0]), batch[1], reduction="none")


def test_taylor_2016_is_the_mean_absolute_derivative_by_finite_differences(
    network, groups, batch
) -> None:
    network, batch, h = network.double(), (batch[0].double(), batch[1]), 1e-5
    for name, values in criteria.Taylor2016().scores(network, groups, [batch]).values.items():
        derivatives = [
            losses(gated(network, name, unit, 1 + h), batch)
            - losses(gated(network, name, unit, 1 - h), batch)
            for unit in range(len(values))
        ]
        expected = (torch.stack(derivatives) / (2 * h)).abs().mean(1)
        torch.testing.assert_close(
            values.double(), expected / expected.norm(), rtol=1e-4, atol=1e-7
        )


def test_taylor_2019_is_the_squared_sum_of_weight_times_gradient(network, groups, batch) -> None:
    inputs, targets = batch
    expected = {name: torch.zeros(size) for name, size in groups.sizes.items()}
    for part in (slice(0, 4), slice(4, 8), slice(8, 11)):  # the loader's batches play no part
        network.zero_grad()
        F.cross_entropy(network(inputs[part]), targets[part]).backward()
        for name, reader in READERS.items():
            weight = network.get_submodule(reader).weight
            products = (weight * weight.grad).detach()
            products = products.unflatten(1, (groups[name].size, -1)).transpose(0, 1).flatten(1)
            expected[name] += products.sum(1).square() * len(targets[part]) / 11
    loader = [(inputs[:1], targets[:1]), (inputs[1:], targets[1:])]
    found = criteria.Taylor2019(minibatch=4).scores(network, groups, loader).values
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)


def small_steps(network: nn.Module) -> nn.Module:
    """A network in which the removal of a unit is a small change."""
    with torch.no_grad():
        for reader in READERS.values():
            network.get_submodule(reader).weight.mul_(0.01)
    return network.double()


def test_taylor_has_the_order_of_what_taking_a_unit_out_does_to_the_loss(
    network, groups, batch
) -> None:
    network, batch = small_steps(network), (batch[0].double(), batch[1])
    before = losses(network, batch)
    in_2016 = criteria.Taylor2016().scores(network, groups, [batch]).values
    in_2019 = criteria.Taylor2019().scores(network, groups, [batch]).values
    for name, size in groups.sizes.items():
        change = [losses(gated(network, name, u, 0.0), batch) - before for u in range(size)]
        change = torch.stack(change)
        assert in_2016[name].argsort().tolist() == change.abs().mean(1).argsort().tolist()
        assert in_2019[name].argsort().tolist() == change.mean(1).abs().argsort().tolist()


def test_fisher_has_the_order_of_what_taking_a_unit_out_does_to_the_predictions(
    network, groups
) -> None:
    """Half the Fisher information is the expected rise of the loss on labels of the network."""
    network = small_steps(network)
    with torch.no_grad():
        network.fc2.weight.mul_(100)
    inputs = torch.randn(20, *IMAGE).double()
    log_p = network(inputs).log_softmax(1).detach()
    # Each label of each example as often as the network expects it.
    often = (log_p.exp() * 500).round().long().flatten()
    targets = torch.arange(3).repeat(20).repeat_interleave(often)
    loader = [(inputs.repeat_interleave(3, 0).repeat_interleave(often, 0), targets)]
    scores = criteria.Fisher().scores(network, groups, loader).values
    for name in ("conv1", "conv2"):
        rises = []
        for unit in range(groups[name].size):
            with torch.no_grad():
                log_q = gated(network, name, unit, 0.0)(inputs).log_softmax(1)
            rises.append((log_p.exp() * (log_p - log_q)).sum(1).mean().item())
        np.testing.assert_allclose(scores[name], rises, rtol=0.1)
        assert scores[name].argsort().tolist() == np.argsort(rises).tolist()


def test_l1_norm(network, groups) -> None:
    scores = criteria.Magnitude(order=1).scores(network, groups, []).values
    for name, values in scores.items():
        weight = network.get_submodule(name).weight.detach().numpy().astype(float)
        np.testing.assert_allclose(
            values, np.abs(weight).reshape(len(weight), -1).sum(1), rtol=1e-5
        )
    with pytest.raises(ConfigError, match=r"Magnitude.order: expected 1 or 2, got 3"):
        criteria.Magnitude(order=3)


def test_snip_is_the_share_in_all_connection_sensitivities(network, groups, batch) -> None:
    scores = criteria.SNIP().scores(network, groups, [(batch[0][:3], batch[1][:3]), batch]).values
    both = torch.cat([batch[0][:3], batch[0]]), torch.cat([batch[1][:3], batch[1]])
    F.cross_entropy(network(both[0]), both[1]).backward()
    expected = {}
    for name in groups:
        weight = network.get_submodule(name).weight
        expected[name] = (weight * weight.grad).detach().abs().flatten(1).sum(1)
    whole = sum(values.sum() for values in expected.values())
    for name, values in scores.items():
        torch.testing.assert_close(values, expected[name] / whole, rtol=1e-4, atol=1e-8)
    assert sum(float(values.sum()) for values in scores.values()) == pytest.approx(1)


def test_batch_norm_scale_is_the_mean_of_absolute_scales(network, groups) -> None:
    scores = criteria.BatchNormScale().scores(network, groups, []).values
    torch.testing.assert_close(scores, {"conv1": network.norm.weight.detach().abs()})
    twice = nn.Sequential(
        nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.GroupNorm(3, 3), nn.Conv2d(3, 2, 1)
    )
    for norm in twice[1:3]:
        nn.init.normal_(norm.weight)
    scores = criteria.BatchNormScale().scores(
        twice, trace_groups(twice, torch.randn(1, 1, 2, 2)), []
    )
    expected = (twice[1].weight.abs() + twice[2].weight.abs()) / 2
    torch.testing.assert_close(scores.values["0"], expected.detach())


def test_batch_norm_scale_needs_a_normalisation() -> None:
    plain = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    groups = trace_groups(plain, torch.randn(1, 2))
    with pytest.raises(PlanError, match="expected normalisations with scales, found none .* 0"):
        criteria.BatchNormScale().scores(plain, groups, [])


def test_geometric_median_is_the_sum_of_distances(network, groups) -> None:
    scores = criteria.GeometricMedian().scores(network, groups, []).values
    for name, values in scores.items():
        filters = network.get_submodule(name).weight.detach().numpy().astype(float)
        filters = filters.reshape(len(filters), -1)
        np.testing.assert_allclose(values, cdist(filters, filters).sum(1), rtol=1e-5)


def test_geometric_median_of_filters_on_a_line() -> None:
    network = nn.Sequential(nn.Linear(1, 5), nn.Linear(5, 1))
    network[0].weight.data = torch.tensor([[0.0], [1], [2], [3], [10]])
    groups = trace_groups(network, torch.randn(1, 1))
    values = criteria.GeometricMedian().scores(network, groups, []).values["0"]
    assert values.tolist() == [16, 13, 12, 13, 34]


def test_hrank_is_the_mean_matrix_rank(network, groups, batch) -> None:
    inputs, targets = batch
    scores = criteria.HRank(images=7).scores(network, groups, [(inputs, targets)]).values
    readings = {n: v.detach().numpy() for n, v in network.readings(inputs[:7]).items()}
    readings["conv2"] = readings["conv2"].reshape(7, 3, 2, 3)  # flattened: as square as may be
    readings["fc1"] = readings["fc1"].reshape(7, 5, 1, 1)
    for name, maps in readings.items():
        expected = [
            np.mean([np.linalg.matrix_rank(maps[n, unit]) for n in range(7)])
            for unit in range(maps.shape[1])
        ]
        np.testing.assert_allclose(scores[name], expected)
    assert scores["conv2"].max() <= 2
    assert scores["conv1"].max() > 2


def test_hrank_of_maps_of_known_rank() -> None:
    """Filters that pick a constant, one diagonal, and everything."""
    network = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 1, 1))
    network[0].weight.data = torch.eye(3).reshape(3, 3, 1, 1)
    maps = torch.zeros(2, 3, 4, 4)
    maps[:, 0] = 1
    maps[:, 1] = torch.diag(torch.tensor([1.0, 2, 3, 0]))
    maps[:, 2] = torch.randn(2, 4, 4)
    groups = trace_groups(network, maps)
    scores = criteria.HRank().scores(network, groups, [(maps, torch.zeros(2).long())])
    assert scores.values["0"].tolist() == [1, 3, 4]


def test_hrank_of_tokens_and_of_one_dimension() -> None:
    tokens = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    groups = trace_groups(tokens, torch.randn(1, 5, 4))
    values = criteria.HRank().scores(tokens, groups, [(torch.randn(6, 5, 4), torch.zeros(6))])
    assert values.values["0"].tolist() == [1, 1, 1]  # one number per position
    line = nn.Sequential(nn.Conv1d(1, 3, 3), nn.ReLU(), nn.Conv1d(3, 1, 1))
    line[0].weight.data[1] = 0
    line[0].bias.data = torch.tensor([100.0, -1, 100])
    groups = trace_groups(line, torch.randn(1, 1, 8))
    values = criteria.HRank().scores(line, groups, [(torch.randn(6, 1, 8), torch.zeros(6))])
    assert values.values["0"].tolist() == [1, 0, 1]


def pfp_by_loops(read: Tensor, weight: Tensor) -> list[float]:
    """The definition for patches ``(N, places, units, entries)``, weight (out, units, entries)."""
    best = [0.0] * weight.shape[1]
    for a_sign, w_sign in product((1, -1), repeat=2):
        a, w = (a_sign * read).clamp_min(0).numpy(), (w_sign * weight).clamp_min(0).numpy()
        for n, place, out in product(*map(range, (*a.shape[:2], len(w)))):
            terms = [(a[n, place, j] * w[out, j]).sum() for j in range(len(best))]
            if sum(terms) > 0:
                best = [max(b, t / sum(terms)) for b, t in zip(best, terms, strict=True)]
    return best


def test_pfp_is_the_largest_share(network, groups, batch) -> None:
    inputs, targets = batch
    scores = criteria.PFP(examples=5).scores(network, groups, [(inputs, targets)]).values
    read = {name: value.detach() for name, value in network.readings(inputs[:5]).items()}
    patches = F.unfold(read["conv1"], 3, padding=1, stride=2)  # (N, units * 9, places)
    patches = patches.transpose(1, 2).unflatten(2, (4, 9))
    expected = {
        "conv1": pfp_by_loops(patches, network.conv2.weight.detach().flatten(2)),
        "conv2": pfp_by_loops(
            read["conv2"].flatten(2)[:, None], network.fc1.weight.detach().unflatten(1, (3, 6))
        ),
        "fc1": pfp_by_loops(read["fc1"][:, None, :, None], network.fc2.weight.detach()[..., None]),
    }
    for name, values in scores.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_pfp_does_not_depend_on_the_scale_of_the_weights(scale) -> None:
    network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    loader = [(torch.randn(20, 4), torch.zeros(20).long())]
    groups = trace_groups(network, loader[0][0][:1])
    before = criteria.PFP().scores(network, groups, loader).values["0"]
    with torch.no_grad():
        network[0].weight.mul_(scale)
        network[0].bias.mul_(scale)
    after = criteria.PFP().scores(network, groups, loader).values["0"]
    torch.testing.assert_close(after, before, rtol=1e-4, atol=0)
    assert before.max() > 0


def test_pfp_of_a_transposed_layer_and_by_hand() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    network[0].weight.data, network[0].bias.data = torch.eye(2), torch.zeros(2)
    network[1].weight.data = torch.tensor([[1.0, 2.0]])
    groups = trace_groups(network, torch.randn(1, 2))
    loader = [(torch.tensor([[3.0, 1.0], [4.0, 4.0]]), torch.zeros(2).long())]
    values = criteria.PFP().scores(network, groups, loader).values["0"]
    torch.testing.assert_close(values, torch.tensor([3 / 5, 8 / 12]))
    up = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.ConvTranspose2d(3, 2, 2, stride=2))
    groups = trace_groups(up, torch.randn(1, 1, 3, 3))
    inputs = torch.randn(2, 1, 3, 3)
    values = criteria.PFP().scores(up, groups, [(inputs, torch.zeros(2).long())]).values["0"]
    read = F.relu(up[0](inputs)).detach().flatten(2).transpose(1, 2)[..., None]
    weight = up[2].weight.detach().flatten(1).T[..., None]  # each output pixel reads one place
    np.testing.assert_allclose(values, pfp_by_loops(read, weight), rtol=1e-4)


def data_free_by_loops(made: np.ndarray, readers: np.ndarray) -> np.ndarray:
    left, total, costs = set(range(len(made))), 0.0, np.zeros(len(made))
    readers = readers.copy()
    while len(left) > 1:
        cost, j, i = min(
            (np.mean(readers[j] ** 2) * np.sum((made[i] - made[j]) ** 2), j, i)
            for i, j in product(left, left)
            if i != j
        )
        total += cost
        costs[j] = total
        readers[i] += readers[j]
        left.remove(j)
    (last,) = left
    costs[last] = total + np.mean(readers[last] ** 2) * np.sum(made[last] ** 2)
    return costs


def test_data_free_merges_the_cheapest_pair_first(network, groups) -> None:
    scores = criteria.DataFree().scores(network, groups, []).values
    made = {name: network.get_submodule(name).weight.flatten(1) for name in groups}
    for name in groups:
        made[name] = torch.cat([made[name], network.get_submodule(name).bias[:, None]], 1)
    norm = torch.stack([network.norm.weight, network.norm.bias], 1)
    made["conv1"] = torch.cat([made["conv1"], norm], 1)
    for name, values in scores.items():
        readers = network.get_submodule(READERS[name]).weight
        readers = readers.unflatten(1, (groups[name].size, -1)).transpose(0, 1).flatten(1)
        expected = data_free_by_loops(
            made[name].detach().double().numpy(), readers.detach().double().numpy()
        )
        np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_of_equal_units_one_goes_and_merging_loses_nothing(network, groups, batch) -> None:
    with torch.no_grad():
        for layer in (network.conv2, network.fc1):
            layer.weight[2], layer.bias[2] = layer.weight[0], layer.bias[0]
    scores = criteria.DataFree().scores(network, groups, [])
    for name in ("conv2", "fc1"):
        twins = scores.values[name][[0, 2]]
        assert twins.min() == scores.values[name].min() == 0
        assert twins.max() > 0
    kept = {name: sorted(scores.order(name)[1:]) for name in ("conv2", "fc1")}
    plan = PruningPlan(kept, {name: groups[name].size for name in kept})
    before = copy.deepcopy(network.state_dict())
    small = remove_channels(
        criteria.DataFree().merge(network, groups, plan), plan, torch.randn(1, *IMAGE)
    )
    torch.testing.assert_close(small(batch[0]), network(batch[0]))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not torch.allclose(remove_channels(network, plan, batch[0])(batch[0]), network(batch[0]))


def test_iterative_is_the_order_of_leaving_one_by_one(network, groups, batch) -> None:
    """Against a loop that zeroes weights by hand and asks Fisher again, with momentum."""
    method = criteria.Iterative(criteria.Fisher(), units=2, examples=11, momentum=0.5)
    found = method.scores(network, groups, [batch])
    left = {(name, unit) for name, size in groups.sizes.items() for unit in range(size)}
    masked, average, order = copy.deepcopy(network), None, []
    while len(left) > len(groups):
        now = criteria.Fisher().scores(masked, groups, [batch]).values
        now = {(name, unit): float(now[name][unit]) for name, unit in left}
        average = now if average is None else {k: average[k] / 2 + now[k] / 2 for k in left}
        best = {max((average[k], k) for k in left if k[0] == name)[1] for name in groups}
        leaving = sorted(left - best, key=lambda k: average[k])[:2]
        for name, unit in leaving:
            with torch.no_grad():
                columns(masked, name, unit).zero_()
        order += leaving
        left -= set(leaving)
    places = {k: place for place, k in enumerate(order)}
    for (name, unit), place in places.items():
        assert found.values[name][unit] == place
    survivors = sorted(float(found.values[name][unit]) for name, unit in left)
    assert survivors == [9, 10, 11]


def test_iterative_goes_on_where_the_loader_was(network, groups, batch) -> None:
    seen = []

    class Spy(criteria.Magnitude):
        def scores(self, network, groups, loader):
            seen.append(torch.cat([inputs for inputs, _ in loader]))
            return super().scores(network, groups, loader)

    inputs, targets = batch
    loader = [(inputs[:6], targets[:6]), (inputs[6:], targets[6:])]
    criteria.Iterative(Spy(), units=3, examples=4).scores(network, groups, loader)
    stream = torch.cat([inputs, inputs])
    for step, chunk in enumerate(seen):
        assert torch.equal(chunk, stream[4 * step : 4 * step + 4])
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"units": 0}, "Iterative.units: expected an integer of at least 1, got 0"),
        ({"examples": 0}, "Iterative.examples: expected an integer of at least 1, got 0"),
        ({"momentum": 1.0}, r"Iterative.momentum: expected a number in \[0, 1\), got 1.0"),
        ({"normalise": "l7"}, "Iterative.normalise: expected one of l2, none, got 'l7'"),
    ],
)
def test_iterative_refuses(arguments, message) -> None:
    with pytest.raises(ConfigError, match=message):
        criteria.Iterative(**arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: criteria.Taylor2019(0), "Taylor2019.minibatch: expected an integer .* got 0"),
        (lambda: criteria.HRank(0), "HRank.images: expected an integer of at least 1, got 0"),
        (lambda: criteria.PFP(0), "PFP.examples: expected an integer of at least 1, got 0"),
    ],
)
def test_numbers_of_examples_are_positive(make, message) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_entries_by_unit() -> None:
    units = torch.tensor([1, -1, 0, 1, 2])
    values = torch.tensor([[10.0, 20, 30, 40, 50]])
    expected = [[[30.0, 0], [10, 40], [50, 0]]]
    assert split_units(values, units, 3).tolist() == expected


def test_minibatches_cut_and_join() -> None:
    loader = [(torch.arange(n, n + k), torch.arange(n, n + k)) for n, k in ((0, 5), (5, 1), (6, 4))]
    cut = [inputs.tolist() for inputs, _ in minibatches(loader, 4)]
    assert cut == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [len(inputs) for inputs, _ in minibatches(loader, 5)] == [5, 5]


# --- peers ------------------------------------------------------------------------------------


@pytest.fixture
def plain() -> nn.Module:
    """Without biases and with ReLU, so that producers and readers of a unit agree on its gate."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 5, 3, bias=False), nn.ReLU(),
        nn.Flatten(), nn.Linear(20, 3, bias=False),
    )  # fmt: skip


def peer_scores(importance, network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    graph = torch_pruning.DependencyGraph().build_dependency(network, x)
    found = {}
    for name in ("0", "2"):
        layer = network.get_submodule(name)
        cut = torch_pruning.prune_conv_out_channels
        group = graph.get_pruning_group(layer, cut, list(range(layer.out_channels)))
        found[name] = importance(group)
    return found


def test_l2_norm_of_torch_pruning(plain) -> None:
    x = torch.randn(1, 1, 6, 6)
    only = [nn.Conv2d]
    peer = torch_pruning.importance.MagnitudeImportance(
        p=2, group_reduction="first", normalizer=None, target_types=only
    )
    expected = peer_scores(peer, plain, x)
    scores = criteria.Magnitude().scores(plain, trace_groups(plain, x), []).values
    for name, values in scores.items():  # torch-pruning leaves the root out
        torch.testing.assert_close(values.square(), expected[name])


def test_taylor_of_torch_pruning(plain) -> None:
    x, targets = torch.randn(8, 1, 6, 6), torch.randint(3, (8,))
    groups = trace_groups(plain, x)
    scores = criteria.Taylor2019().scores(plain, groups, [(x, targets)]).values
    F.cross_entropy(plain(x), targets).backward()
    peer = torch_pruning.importance.GroupTaylorImportance(
        group_reduction="mean", normalizer=None, multivariable=True
    )
    # Behind the flatten torch-pruning counts columns, not units.
    expected = peer_scores(peer, plain, x)["0"]
    torch.testing.assert_close(scores["0"].sqrt(), expected, rtol=1e-4, atol=1e-7)


def test_iterative_finds_what_one_shot_cannot() -> None:
    """Two units that cancel: each alone matters much, both together nothing."""
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        network[0].weight[:], network[0].bias[:] = 0, 0
        network[0].weight[0, 0] = network[0].weight[1, 0] = 1
        network[0].weight[2, 1], network[0].weight[3, 2] = 1, 1
        network[2].weight[:] = torch.tensor([[3.0, -3, 1, 0.1], [-3, 3, -1, -0.1]])
    groups = trace_groups(network, torch.randn(1, 3))
    x = torch.rand(64, 3) * 2
    loader = [(x, network(x).argmax(1))]
    one_shot = criteria.Fisher().scores(network, groups, loader)
    assert stats.rankdata(one_shot.values["0"])[:2].min() >= 3
    iterative = criteria.Iterative(criteria.Fisher(), units=1, examples=64, momentum=0.0)
    order = iterative.scores(network, groups, loader).order("0")
    assert order[0] == 3


@pytest.mark.parametrize(
    ("member", "power"), [(criteria.Taylor2019, 2), (criteria.Taylor2016, 0), (criteria.SNIP, 0)]
)
def test_any_loss_that_examples_have(member, power, network, groups, batch) -> None:
    """Three times the squared error: by its own gradients, and as the scores' powers scale."""
    inputs, wanted = batch[0], torch.randn(11, 3)

    def squared(output: Tensor, targets: Tensor) -> Tensor:
        return (output - targets).square().sum(1)

    loader = [(inputs, wanted)]
    once = member(loss=squared).scores(network, groups, loader).values
    thrice = member(loss=lambda o, t: 3 * squared(o, t)).scores(network, groups, loader).values
    for name, values in once.items():
        torch.testing.assert_close(thrice[name], 3.0**power * values)
    squared(network(inputs), wanted).mean().backward()
    weight = network.fc2.weight
    by_gate = (weight * weight.grad).detach().sum(0).square()
    if member is criteria.Taylor2019:
        torch.testing.assert_close(once["fc1"], by_gate, rtol=1e-4, atol=1e-8)
    with pytest.raises(DataError, match="one loss per example"):
        member(loss=F.mse_loss).scores(network, groups, loader)
