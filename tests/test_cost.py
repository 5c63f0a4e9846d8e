import pytest
import torch
from torch import Tensor, nn

from bayesprune import models
from bayesprune.cost import Cost, CostModel, cost, latency
from bayesprune.groups import trace_groups
from bayesprune.plan import PruningPlan
from bayesprune.surgery import remove_channels


class Bilinear(nn.Module):
    """Two inputs, two matrix products of 6 and 12 multiply-accumulates per example."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(2, 3)
        self.right = nn.Linear(4, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.left(left) * self.right(right)


class Recorder(nn.Module):
    """Writes down in which modes it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[bool, bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(
            (self.training, torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        )
        return x


def test_counts_a_convolution_and_a_linear_layer_without_biases_and_norms() -> None:
    network = nn.Sequential(
        nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(24, 5)
    )
    result = cost(network, torch.randn(1, 4, 4, 4))
    assert result.macs == 6 * 2 * 2 * (2 * 3 * 3) + 24 * 5
    assert result.weights == 6 * 2 * 3 * 3 + 24 * 5
    assert result.params == result.weights + 6 + 2 * 6 + 5


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_macs_are_for_one_input_whatever_the_batch(batch: int) -> None:
    assert cost(nn.Linear(7, 5), torch.randn(batch, 7)).macs == 35


def test_accepts_a_tuple_of_inputs() -> None:
    assert cost(Bilinear(), (torch.randn(5, 2), torch.randn(5, 4))) == Cost(18, 24, 18)


def test_shared_parameters_count_once_but_are_used_twice() -> None:
    layer = nn.Linear(3, 3)
    assert cost(nn.Sequential(layer, layer), torch.randn(2, 3)) == Cost(18, 12, 9)


def test_counts_attention_that_would_run_as_one_fused_operation() -> None:
    width, hidden, length = 8, 16, 5
    layer = nn.TransformerEncoderLayer(width, 2, hidden, batch_first=True)
    projections = 4 * length * width**2
    attention = 2 * length**2 * width
    assert cost(layer, torch.randn(3, length, width)).macs == (
        projections + attention + 2 * length * width * hidden
    )
    assert torch.backends.mha.get_fastpath_enabled()


def test_works_on_the_meta_device() -> None:
    with torch.device("meta"):
        assert cost(nn.Linear(10**6, 10**6), torch.empty(1, 10**6)).macs == 10**12


@pytest.mark.parametrize("measure", [cost, latency])
def test_leaves_the_network_as_it_was(measure) -> None:
    recorder = Recorder()
    network = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(), recorder).train()
    network[0].eval()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    measure(network, torch.randn(4, 3))
    assert [module.training for module in network] == [False, True, True]
    assert network.training
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert {(training, grad) for training, grad, _ in recorder.calls} == {(False, False)}


@pytest.mark.parametrize("measure", [cost, latency])
def test_leaves_the_network_as_it_was_after_an_error(measure) -> None:
    network = nn.Linear(3, 2)
    with pytest.raises(RuntimeError):
        measure(network, torch.randn(1, 4))
    assert network.training
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled()


def test_latency_is_a_median_over_the_repeats_in_inference_mode() -> None:
    recorder = Recorder()
    milliseconds = latency(recorder, torch.randn(1), repeats=4, warmup=3)
    assert 0 < milliseconds < 1000
    assert recorder.calls == 7 * [(False, False, True)]


def test_cost_reads_well() -> None:
    result = Cost(macs=2_293_000, params=431_080, weights=430_500)
    assert str(result) == "2,293,000 MACs, 431,080 parameters, 430,500 weights"
    assert "<td>2,293,000</td>" in result._repr_html_()


NETWORKS = {
    "digits": (1, 8, 8),
    "lenet5": (1, 28, 28),
    "resnet20": (3, 32, 32),
}


class Varied(nn.Module):
    """Grouped and transposed convolutions, a shared layer, attention and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.shared = nn.Conv2d(12, 12, 1)
        self.up = nn.ConvTranspose2d(12, 5, 2, stride=2, bias=False)
        self.tokens = nn.Linear(8, 7)
        self.last = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.grouped(self.stem(x)))
        y = self.up(self.shared(torch.relu(self.shared(y))))
        y = torch.cat([y, x], 1).flatten(2).mT
        y = torch.softmax(y @ y.mT, -1) @ y
        return self.last(torch.relu(self.tokens(y)))


def built(name: str) -> tuple[nn.Module, Tensor]:
    if name == "varied":
        return Varied(), torch.randn(3, 3, 8, 8)
    if name == "nested":
        return models.LeNet5((3, 4, 5), select_inputs=True), torch.randn(2, 1, 28, 28)
    return models.create(name), torch.randn(2, *NETWORKS[name])


@pytest.mark.parametrize("name", [*NETWORKS, "varied", "nested"])
def test_the_model_of_the_cost_is_the_cost_of_the_pruned_network(name: str) -> None:
    network, inputs = built(name)
    groups = trace_groups(network, inputs)
    model = CostModel(groups)
    assert model({}) == cost(network, inputs)
    assert model({n: range(size) for n, size in groups.sizes.items()}) == cost(network, inputs)
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        kept = {}
        for group, size in list(groups.sizes.items())[seed:]:  # the others are whole
            count = int(torch.randint(1, size + 1, (), generator=generator))
            kept[group] = sorted(torch.randperm(size, generator=generator)[:count].tolist())
        plan = PruningPlan(kept, {n: groups.sizes[n] for n in kept})
        assert model(kept) == cost(remove_channels(network, plan, inputs), inputs)


@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("name", ["digits", "varied", "nested"])
def test_curves_are_the_model_at_every_number_of_removals(name: str, kind: str) -> None:
    network, inputs = built(name)
    groups = trace_groups(network, inputs)
    model = CostModel(groups)
    order = {n: torch.randperm(size).tolist() for n, size in groups.sizes.items()}
    curves = getattr(model, kind).curves(order)
    assert curves.removed == dict.fromkeys(groups, 0)
    for group, size in groups.sizes.items():
        curves.set(group, size // 3)
    curves.set(next(iter(groups)), 1)  # back, too

    def at(removed: dict[str, int]) -> int:
        return getattr(model({n: order[n][count:] for n, count in removed.items()}), kind)

    for group, size in groups.sizes.items():
        expected = [at({**curves.removed, group: count}) for count in range(size + 1)]
        assert (curves(group) + at(curves.removed)).tolist() == expected
