import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayesprune import models
from bayesprune.errors import ConfigError, PlanError
from bayesprune.gating import Gated, GatedNetwork
from bayesprune.groups import trace_groups


class Block(nn.Module):
    """A convolutional network with a residual sum, an offset norm, and columns behind a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 3, 3, padding=1)
        self.conv3 = nn.Conv2d(3, 4, 1)
        self.fc1 = nn.Linear(4 * 9, 5)
        self.fc2 = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.norm(self.conv1(x)))
        x = x + self.conv3(torch.sigmoid(self.conv2(x)))
        return self.fc2(torch.sigmoid(self.fc1(x.flatten(1))))


SIZES = {"conv1": 4, "conv2": 3, "fc1": 5}


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(6, 2, 3, 3)


@pytest.fixture
def network() -> nn.Module:
    network = Block().eval()
    nn.init.normal_(network.norm.bias)
    return network


@pytest.fixture
def gated(network: nn.Module, inputs: Tensor) -> GatedNetwork:
    return GatedNetwork(network, trace_groups(network, inputs)).eval()


def by_hand(network: nn.Module, x: Tensor, gates: dict[str, Tensor]) -> Tensor:
    """Gates per example, written out: every layer reads gated channels."""
    one, two, three = (gates[name] for name in ("conv1", "conv2", "fc1"))
    x = torch.sigmoid(network.norm(network.conv1(x)))
    inner = torch.sigmoid(network.conv2(x * one[:, :, None, None]))
    x = x + network.conv3(inner * two[:, :, None, None])
    x = (x * one[:, :, None, None]).flatten(1)
    return network.fc2(torch.sigmoid(network.fc1(x)) * three)


def random_gates(*batch: int) -> dict[str, Tensor]:
    return {name: 2 * torch.rand(*batch, size) for name, size in SIZES.items()}


def test_without_gates_it_is_the_network(gated, network, inputs) -> None:
    assert gated.sizes == SIZES
    assert torch.equal(gated(inputs), network(inputs))
    assert torch.equal(gated(inputs, {}), network(inputs))
    ones = {name: torch.ones(size) for name, size in SIZES.items()}
    assert torch.equal(gated(inputs, ones), network(inputs))


def test_gates_multiply_what_the_layers_read(gated, network, inputs) -> None:
    shared = random_gates()
    each = {name: gate.expand(6, -1) for name, gate in shared.items()}
    expected = by_hand(network, inputs, each)
    torch.testing.assert_close(gated(inputs, shared), expected)
    torch.testing.assert_close(gated(inputs, each), expected)
    torch.testing.assert_close(gated.fold(shared)(inputs), expected)


def test_gates_may_differ_between_examples_and_be_left_out(gated, network, inputs) -> None:
    gates = random_gates(6)
    torch.testing.assert_close(gated(inputs, gates), by_hand(network, inputs, gates))
    some = {"conv1": gates["conv1"], "fc1": gates["fc1"][0]}
    filled = {"conv1": some["conv1"], "conv2": torch.ones(6, 3), "fc1": some["fc1"].expand(6, -1)}
    torch.testing.assert_close(gated(inputs, some), by_hand(network, inputs, filled))


def test_gates_are_gone_after_the_call(gated, network, inputs) -> None:
    gated(inputs, random_gates())
    assert torch.equal(gated(inputs), network(inputs))
    with pytest.raises(RuntimeError):
        gated(inputs[:, :1], random_gates())
    assert torch.equal(gated(inputs), network(inputs))


def test_gradients_reach_gates_and_weights(gated, network, inputs) -> None:
    gates = {name: gate.double().requires_grad_() for name, gate in random_gates(2).items()}
    gated.double()
    names = list(gates)

    def function(*values: Tensor) -> Tensor:
        return gated(inputs[:2].double(), dict(zip(names, values, strict=True)))

    assert torch.autograd.gradcheck(function, tuple(gates.values()))
    function(*gates.values()).sum().backward()
    assert all(parameter.grad is not None for parameter in gated.parameters())


def test_only_the_named_groups_are_gated(network, inputs) -> None:
    groups = trace_groups(network, inputs)
    gated = GatedNetwork(network, groups, ["conv2"])
    assert [m for m in gated.network.modules() if isinstance(m, Gated)] == [gated.network.conv3]
    with pytest.raises(PlanError, match="conv1: gates for an unknown group; known: conv2"):
        gated(inputs, {"conv1": torch.ones(4)})
    with pytest.raises(PlanError, match="unknown groups: conv7; known: conv1, conv2, fc1"):
        GatedNetwork(network, groups, ["conv2", "conv7"])


def test_the_network_is_copied(gated, network, inputs) -> None:
    state = copy.deepcopy(network.state_dict())
    small = gated.fold(random_gates())
    with torch.no_grad():
        for tensor in [*gated.parameters(), *small.parameters()]:
            tensor.add_(1.0)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert not any(isinstance(module, Gated) for module in network.modules())


def test_folding_gives_the_plain_network_back(gated, network, inputs) -> None:
    gates = random_gates()
    plain = gated.fold(gates)
    assert type(plain) is Block
    assert list(plain.state_dict()) == list(network.state_dict())
    assert [type(m) for m in plain.modules()] == [type(m) for m in network.modules()]
    torch.testing.assert_close(
        plain.conv2.weight, network.conv2.weight * gates["conv1"][:, None, None]
    )
    torch.testing.assert_close(
        plain.fc1.weight, network.fc1.weight * gates["conv1"].repeat_interleave(9)
    )
    assert torch.equal(plain.conv1.weight, network.conv1.weight)
    # Again and with other gates: folding leaves the gated network as it is.
    assert torch.equal(gated(inputs), network(inputs))
    assert torch.equal(gated.fold({})(inputs), network(inputs))


def test_copies_keep_their_own_gates(gated, inputs) -> None:
    other, gates = copy.deepcopy(gated), random_gates()
    assert torch.equal(other(inputs, gates), gated(inputs, gates))
    assert torch.equal(other(inputs), gated(inputs))


def test_follows_dtype_and_double_gates(gated, inputs) -> None:
    gates = {name: gate.double() for name, gate in random_gates().items()}
    assert gated(inputs, gates).dtype == torch.float32
    half = gated.bfloat16()(inputs.bfloat16(), gates)
    assert half.dtype == torch.bfloat16


def test_layers_that_are_reached_twice_are_gated_at_each_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 4)
            self.again = self.shared = nn.Linear(4, 4)
            self.last = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.again(torch.sigmoid(self.shared(self.first(x)))))

    network, x = Twice(), torch.randn(5, 3)
    groups = trace_groups(network, x)
    assert groups.sizes == {"first": 4}
    gated, gate = GatedNetwork(network, groups), torch.rand(4)
    assert gated.network.again is gated.network.shared
    hidden = torch.sigmoid(network.shared(network.first(x) * gate)) * gate
    expected = network.last(network.shared(hidden) * gate)
    torch.testing.assert_close(gated(x, {"first": gate}), expected)
    folded = gated.fold({"first": gate})
    torch.testing.assert_close(folded(x), expected)
    assert folded.again is folded.shared


def test_concatenated_groups_are_gated_in_their_columns() -> None:
    class Cat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(3, 2), nn.Linear(9, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.cat([self.b(x), x, self.a(x)], -1))

    network, x = Cat(), torch.randn(5, 3)
    gated, gates = (
        GatedNetwork(network, trace_groups(network, x)),
        {"a": torch.rand(4), "b": torch.rand(2)},
    )
    parts = [network.b(x) * gates["b"], x, network.a(x) * gates["a"]]
    torch.testing.assert_close(gated(x, gates), network.c(torch.cat(parts, -1)))


def test_other_arguments_and_attributes_of_a_layer_pass() -> None:
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 4, 3, stride=2)
            self.up = nn.ConvTranspose2d(4, 2, 3, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.conv(x)
            assert self.up.in_channels == hidden.shape[1] == self.up.weight.shape[0]
            return self.up(hidden, output_size=x.shape[-2:])

    network, x = Up(), torch.randn(2, 2, 8, 8)
    gated, gate = GatedNetwork(network, trace_groups(network, x)), torch.rand(4)
    expected = network.up(network.conv(x) * gate[:, None, None], output_size=(8, 8))
    torch.testing.assert_close(gated(x, {"conv": gate}), expected)
    torch.testing.assert_close(gated.fold({"conv": gate})(x), expected)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = gated.network.up.nonsense


@pytest.mark.parametrize("grad", [True, False])
def test_the_fused_encoder_layer_does_not_pass_by_the_gates(grad: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 6, batch_first=True, dropout=0.0)
    network = nn.Sequential(layer, nn.Linear(8, 2)).eval().requires_grad_(False)
    x = torch.randn(3, 4, 8)
    groups = trace_groups(network, x)
    assert groups.sizes == {"0.self_attn": 2, "0.linear1": 6}
    gated = GatedNetwork(network, groups)
    gates = {name: torch.rand(size, requires_grad=True) for name, size in groups.sizes.items()}
    with torch.set_grad_enabled(grad):
        found = gated(x, gates)
        torch.testing.assert_close(found, gated.fold(gates)(x))
    assert not torch.allclose(found, network(x))
    assert found.requires_grad == grad


def test_takes_many_inputs_and_tokens() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.c(self.a(x) + self.b(y))

    network, inputs = Sum(), (torch.randn(5, 7, 3), torch.randn(5, 7, 2))
    gated, gates = GatedNetwork(network, trace_groups(network, inputs)), torch.rand(5, 4)
    read = network.a(inputs[0]) + network.b(inputs[1])
    torch.testing.assert_close(gated(inputs, {"a": gates}), network.c(read * gates[:, None]))


def test_gates_per_example_need_a_row_per_example() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(x.flatten(0, 1))))

    network, x = Tokens(), torch.randn(5, 7, 3)
    gated = GatedNetwork(network, trace_groups(network, x))
    gated(x, {"a": torch.rand(4)})
    with pytest.raises(ConfigError, match="35 rows for 5 examples"):
        gated(x, {"a": torch.rand(5, 4)})


@pytest.mark.parametrize("shape", [(1,), (5,), (4, 1), ()])
def test_refuses_gates_of_another_size(gated, inputs, shape) -> None:
    for use in (lambda g: gated(inputs, g), gated.fold):
        with pytest.raises(PlanError, match="conv1: expected gates of size 4, got shape"):
            use({"conv1": torch.ones(shape)})


def test_folds_one_gate_per_unit_only(gated) -> None:
    with pytest.raises(PlanError, match="fc1: expected gates of size 5, got shape \\(2, 5\\)"):
        gated.fold({"fc1": torch.ones(2, 5)})
    with pytest.raises(PlanError, match="fc9: gates for an unknown group"):
        gated.fold({"fc9": torch.ones(2)})


def test_refuses_the_groups_of_another_network() -> None:
    groups = trace_groups(models.create("lenet5"), torch.randn(1, 1, 28, 28))
    with pytest.raises(PlanError, match=r"conv1.weight: the groups are of .* got no such tensor"):
        GatedNetwork(models.create("lenet300_100"), groups)
    with pytest.raises(PlanError, match=r"conv1.weight: .* expected \(20, 1, 5, 5\), got \(6,"):
        GatedNetwork(models.create("lenet5", widths=(6, 50, 500)), groups)
