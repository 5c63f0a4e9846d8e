import pytest
import torch
from torch import Tensor, nn

from bayesprune.cost import Cost, cost, latency


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
