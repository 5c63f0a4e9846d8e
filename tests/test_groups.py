"""Which channels the tracer ties together, which it leaves alone and why, and what it refuses."""

import copy
import operator
import warnings
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from bayesprune import models
from bayesprune.cost import CostModel, cost
from bayesprune.errors import TraceError
from bayesprune.groups import ChannelGroups, trace_groups


class Forward(nn.Module):
    """A network from named layers and a function of the layers and the inputs."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = forward

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def slices(groups: ChannelGroups, name: str) -> dict[tuple[str, int], tuple[str, list[int]]]:
    return {(s.tensor, s.axis): (s.role, s.units.tolist()) for s in groups[name].slices}


def test_a_group_holds_everything_that_leaves_with_a_channel() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(2 * 2 * 2, 5),
    )  # fmt: skip
    groups = trace_groups(network, torch.randn(1, 3, 6, 6))
    assert groups.sizes == {"0": 2}
    assert slices(groups, "0") == {
        ("0.weight", 0): ("producer", [0, 1]),
        ("0.bias", 0): ("passthrough", [0, 1]),
        ("1.weight", 0): ("passthrough", [0, 1]),
        ("1.bias", 0): ("passthrough", [0, 1]),
        ("1.running_mean", 0): ("passthrough", [0, 1]),
        ("1.running_var", 0): ("passthrough", [0, 1]),
        ("5.weight", 1): ("consumer", [0, 0, 0, 0, 1, 1, 1, 1]),
    }
    assert groups["0"].modules("producer") == ["0"]
    assert groups["0"].modules("consumer") == ["5"]
    assert groups.frozen == {"5": "reaches the output of the network"}
    assert groups.shapes["0.weight"] == (2, 3, 3, 3)
    assert "1.running_mean" in groups.shapes
    assert "1.running_mean" not in groups.parameters


def test_concatenation_gives_each_part_its_columns() -> None:
    def forward(self, x):
        a = self.a(x)
        return self.c(torch.cat([x, self.b(a), a], 1))

    network = Forward(forward, a=nn.Linear(2, 3), b=nn.Linear(3, 2), c=nn.Linear(7, 4))
    groups = trace_groups(network, torch.randn(1, 2))
    assert groups.sizes == {"a": 3, "b": 2}
    assert slices(groups, "a")["c.weight", 1] == ("consumer", [-1, -1, -1, -1, 0, 1, 2])
    assert slices(groups, "a")["b.weight", 1] == ("consumer", [0, 1, 2])
    assert slices(groups, "b")["c.weight", 1] == ("consumer", [-1, -1, 0, 1, -1, -1, -1])


def test_a_residual_sum_ties_its_terms() -> None:
    def forward(self, x):
        x = self.a(x)
        x = x + self.c(F.relu(self.b(x)))
        return self.d(x)

    network = Forward(
        forward, a=nn.Linear(2, 3), b=nn.Linear(3, 4), c=nn.Linear(4, 3), d=nn.Linear(3, 2)
    )
    groups = trace_groups(network, torch.randn(1, 2))
    assert groups.sizes == {"a": 3, "b": 4}
    assert groups["a"].modules("producer") == ["a", "c"]
    assert groups["a"].modules("consumer") == ["b", "d"]


def test_a_sum_with_the_input_freezes() -> None:
    def forward(self, x):
        return self.c(self.b(F.relu(self.a(x))) + x)

    network = Forward(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 3), c=nn.Linear(3, 2))
    groups = trace_groups(network, torch.randn(1, 3))
    assert groups.sizes == {"a": 4}
    assert set(groups.frozen) == {"b", "c"}


def test_channels_of_a_zero_padded_shortcut_are_tied_where_they_lie() -> None:
    groups = trace_groups(models.create("resnet20"), torch.randn(1, 3, 32, 32))
    owned = slices(groups, "conv1")
    assert owned["layer2.0.conv2.weight", 0][1] == [*range(16), *[-1] * 16]
    assert owned["layer3.0.conv2.weight", 0][1] == [*range(16), *[-1] * 48]


def test_units_of_grouped_layers_are_blocks() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 1, groups=3), nn.GroupNorm(6, 12), nn.Conv2d(12, 4, 1)
    )
    groups = trace_groups(network, torch.randn(1, 3, 4, 4))
    assert groups.sizes == {"0": 3}
    owned = slices(groups, "0")
    assert owned["0.weight", 0] == ("producer", [0, 0, 1, 1, 2, 2])
    assert owned["1.weight", 0] == ("passthrough", [0] * 4 + [1] * 4 + [2] * 4)
    assert ("1.weight", 1) not in owned
    assert owned["2.weight", 0][1] == [0] * 4 + [1] * 4 + [2] * 4


def test_a_chunk_ties_the_same_places_of_its_parts() -> None:
    def forward(self, x):
        a, b = self.a(x).chunk(2, -1)
        return self.c(self.b(b)) + self.d(a)

    network = Forward(
        forward, a=nn.Linear(2, 6), b=nn.Linear(3, 4), c=nn.Linear(4, 2), d=nn.Linear(3, 2)
    )
    groups = trace_groups(network, torch.randn(1, 2))
    assert groups.sizes == {"a": 3, "b": 4}
    assert slices(groups, "a")["a.weight", 0] == ("producer", [0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    ("view", "units"),
    [
        (lambda x: x.view(len(x), 2, 3, 1, 1), [0, 1, 2, 0, 1, 2]),
        (lambda x: x.view(len(x), 2, -1, 1, 1), [0, 1, 2, 0, 1, 2]),
        (lambda x: x.reshape((len(x), -1, 2, 1, 1)), [0, 0, 1, 1, 2, 2]),
        (lambda x: x.unflatten(1, (-1, 2)), [0, 0, 1, 1, 2, 2]),
    ],
)
def test_of_a_split_dimension_the_open_one_follows(view, units) -> None:
    """The one given as -1, else the last; channels along the others form one unit."""

    def forward(self, x):
        x = view(self.a(x)).transpose(1, 2)
        return self.b(x.flatten(1, 2))

    network = Forward(forward, a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 2, 1))
    groups = trace_groups(network, torch.randn(1, 3, 1, 1))
    assert slices(groups, "a")["a.weight", 0][1] == units


def test_norms_over_channels_are_marked_as_inexact() -> None:
    network = nn.Sequential(
        nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 5), nn.RMSNorm(5), nn.Linear(5, 4),
        nn.ReLU(), nn.Linear(4, 2),
    )  # fmt: skip
    groups = trace_groups(network, torch.randn(1, 3, 4))
    assert {name: group.exact for name, group in groups.items()} == {
        "0": False,
        "2": False,
        "4": True,
    }
    convolutions = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.GroupNorm(1, 4), nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4),
        nn.Conv2d(4, 6, 1), nn.LayerNorm([6, 2, 2]), nn.Conv2d(6, 2, 1),
    )  # fmt: skip
    groups = trace_groups(convolutions, torch.randn(1, 3, 2, 2))
    assert [group.exact for group in groups.values()] == [False, True, False]
    assert slices(groups, "4")["5.weight", 0][1] == list(range(6))


def between(function: Callable[[Tensor], Tensor], width: int = 6) -> nn.Module:
    """Two prunable layers with something between that makes `width` of the first one's 6."""

    def forward(self, x):
        return self.c(F.relu(self.b(function(self.a(x)))))

    return Forward(forward, a=nn.Linear(4, 6), b=nn.Linear(width, 5), c=nn.Linear(5, 2))


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * x


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x.softmax(-1), "passes through softmax in Forward"),
        (lambda x: x - x.mean(-1, keepdim=True), "passes through mean in Forward"),
        (lambda x: x.sort(-1)[0], "passes through sort in Forward"),
        (lambda x: x @ torch.ones(6, 6), "passes through .*matmul"),
        (lambda x: torch.einsum("nc,nc->nc", x, x), "passes through einsum"),
        (lambda x: F.normalize(x), "passes through normalize"),
        (lambda x: F.group_norm(x, 3), "group_norm in Forward, whose number of blocks is fixed"),
        (lambda x: x.roll(1, -1), "picked by position by roll in Forward"),
        (lambda x: torch.cat([x[:, 3:], x[:, :3]], 1), "picked by position by .*getitem"),
        (lambda x: x[:, [0, 2, 4, 1, 3, 5]] + x[:, :1], "picked by position by .*getitem"),
        (lambda x: x[:, [0, 2, 4, 1, 3, 5]], "picked by position by .*getitem"),
        (lambda x: x.index_select(1, torch.arange(5, -1, -1)), "picked by .* index_select"),
        (lambda x: x.repeat(1, 2)[:, :6], "picked by position by .*getitem"),
        (lambda x: torch.cat(x.split(2, 1), 1), "picked by position by split"),
        (lambda x: torch.cat(x.tensor_split(4, 1), 1), "picked by position by tensor_split"),
        (lambda x: torch.zeros(2, 6).copy_(x), "passes through copy_"),
        (lambda x: x + torch.arange(6.0), "meets a tensor that is not a parameter or buffer"),
        (lambda x: x * torch.ones(2, 6), "meets a tensor that is not a parameter or buffer"),
    ],
)
def test_what_cannot_be_followed_freezes_with_a_reason(function, reason) -> None:
    groups = trace_groups(between(function), torch.randn(2, 4))
    assert groups.sizes == {"b": 5}
    assert set(groups.frozen) == {"a", "c"}
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(groups.frozen["a"])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.clone().contiguous().float(),
        lambda x: torch.where(x > 0, x, 0.1 * x),
        lambda x: 1 - x**2 / 3,
        lambda x: x.masked_fill(x < 0, 0.0),
        lambda x: x * torch.sigmoid(x).clamp(0.1, 0.9),
        lambda x: x + torch.zeros_like(x) + x.new_zeros(1),
        lambda x: x.unsqueeze(1).expand(-1, 3, -1).mean(1),
        lambda x: x.view(2, 2, 3).flatten(1),
        lambda x: x.flip(-1),
        lambda x: F.dropout(x, 0.5, training=False),
        lambda x: x * torch.rand(2, 1),
        lambda x: x + torch.ones(6).mean(),
        lambda x: F.pad(x[:, None], (0, 0, 1, 1))[:, 1],
        lambda x: torch.cat([*x.split(1, 0)]),
        lambda x: torch.stack(x.chunk(3, 1), -1).mean(-1).repeat(1, 3),
        lambda x: x[None, ..., None].squeeze().roll(1, 0),
        Squared.apply,
    ],
)
def test_what_keeps_channels_apart_is_followed(function) -> None:
    groups = trace_groups(between(function), torch.randn(2, 4))
    assert set(groups) == {"a", "b"}


def test_what_repeats_channels_repeats_units() -> None:
    network = between(lambda x: torch.cat([x, x.repeat(1, 2)], -1), 18)
    groups = trace_groups(network, torch.randn(2, 4))
    assert slices(groups, "a")["b.weight", 1] == ("consumer", [*range(6)] * 3)


def test_a_parameter_that_something_else_uses_as_a_whole_is_not_cut() -> None:
    def forward(self, x):
        penalty = self.b.weight.norm()
        return self.c(F.relu(self.b(F.relu(self.a(x))))) * penalty

    network = Forward(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 5), c=nn.Linear(5, 2))
    with pytest.raises(TraceError, match=r"b.weight, which norm uses as a whole in Forward"):
        trace_groups(network, torch.randn(2, 4))


def test_a_layer_whose_output_nobody_reads_is_in_no_group() -> None:
    def forward(self, x):
        x = self.a(x)
        self.b(x)
        return self.c(x)

    network = Forward(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 5), c=nn.Linear(6, 2))
    groups = trace_groups(network, torch.randn(2, 4))
    assert groups.sizes == {"a": 6}
    assert groups["a"].modules("consumer") == ["b", "c"]


@pytest.mark.parametrize("wrap", [list, tuple, lambda o: {"a": o}, lambda o: SimpleNamespace(a=o)])
def test_outputs_of_any_form_stay(wrap) -> None:
    def forward(self, x):
        hidden = self.a(x)
        last = self.b(hidden)
        return wrap([[self.c(last)], {"hidden": hidden}])

    network = Forward(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 5), c=nn.Linear(5, 2))
    assert set(trace_groups(network, torch.randn(2, 4))) == {"b"}


@pytest.mark.parametrize(
    ("ignore", "left"),
    [
        (["0.0"], {"1.0", "1.2"}),
        (["0"], {"1.0", "1.2"}),
        (["0.1"], {"1.0", "1.2"}),
        (["1"], {"0.0"}),
        (["1.2", "0"], {"1.0"}),
    ],
)
def test_ignored_modules_keep_their_outputs(ignore, left) -> None:
    network = nn.Sequential(
        nn.Sequential(nn.Linear(4, 6), nn.Sigmoid()), mlp(6, 5, 7), nn.Linear(7, 2)
    )
    groups = trace_groups(network, torch.randn(2, 4), ignore)
    assert set(groups) == left
    assert "named in ignore" in groups.frozen.values()


def test_ignore_reaches_what_is_coupled() -> None:
    def forward(self, x):
        x = self.a(x)
        return self.c(x + self.b(F.relu(self.inner(x))))

    network = Forward(
        forward, a=nn.Linear(2, 3), inner=nn.Linear(3, 4), b=nn.Linear(4, 3), c=nn.Linear(3, 2)
    )
    groups = trace_groups(network, torch.randn(1, 2), ignore=["b"])
    assert set(groups) == {"inner"}
    assert groups.frozen["a"]


def auxiliary(size: int = 1, needs_targets: bool = False) -> nn.Module:
    """A classifier with a second head that runs in training mode only."""

    def forward(self, x):
        if self.training and needs_targets:
            raise ValueError("targets expected")
        x = F.relu(self.a(x))
        out = self.c(F.relu(self.b(x)))
        return (out, self.aux(x)) if self.training else out

    aux = nn.Sequential(nn.Conv2d(6, 5, size), nn.ReLU(), nn.Conv2d(5, 2, 1))
    layers = {"a": nn.Conv2d(3, 6, 1), "b": nn.Conv2d(6, 5, 1), "c": nn.Conv2d(5, 2, 1)}
    return Forward(forward, aux=aux, **layers)


def test_heads_that_only_train_follow_what_they_read() -> None:
    network, x = auxiliary(), torch.randn(2, 3, 4, 4)
    groups = trace_groups(network, x)
    assert groups.sizes == {"a": 6, "b": 5}
    assert groups["a"].modules("consumer") == ["b", "aux.0"]
    assert groups.frozen["aux.0"] == "runs in training mode only"
    assert CostModel(groups)({}) == cost(network, x)


def test_heads_that_cannot_run_are_named() -> None:
    x = torch.randn(2, 3, 4, 4)
    with pytest.raises(TraceError, match=r"^aux\.0: .*\(\(2, 3, 4, 4\)\).* in training mode only"):
        trace_groups(auxiliary(size=9), x)
    # Training mode that needs more than inputs is left alone.
    assert trace_groups(auxiliary(needs_targets=True), x).sizes == {"a": 6, "b": 5}


def assert_same(groups: ChannelGroups, others: ChannelGroups) -> None:
    assert groups.sizes == others.sizes
    assert all(slices(groups, name) == slices(others, name) for name in groups)
    assert (groups.uses, groups.fixed_macs) == (others.uses, others.fixed_macs)
    assert groups.shapes == others.shapes
    assert groups.frozen == others.frozen


@pytest.mark.parametrize("name", ["digits", "resnet20"])
def test_batch_size_and_frozen_parameters_do_not_matter(name: str) -> None:
    network, shape = models.create(name), models.input_shape(name)
    groups = trace_groups(network, torch.randn(1, *shape))
    assert_same(groups, trace_groups(network, torch.randn(3, *shape)))
    network.requires_grad_(False)
    assert_same(groups, trace_groups(network, torch.randn(2, *shape)))


def test_works_on_the_meta_device_and_in_double_precision() -> None:
    network = models.create("digits")
    groups = trace_groups(network, torch.randn(1, 1, 8, 8))
    assert_same(groups, trace_groups(network.double(), torch.randn(1, 1, 8, 8).double()))
    assert_same(groups, trace_groups(network.to("meta"), torch.empty(1, 1, 8, 8, device="meta")))


def test_time_grows_no_faster_than_channels() -> None:
    import time

    def seconds(width: int) -> float:
        network = mlp(1, width, width, 1)
        start = time.process_time()
        trace_groups(network, torch.randn(1, 1))
        return time.process_time() - start

    seconds(8)  # imports
    assert seconds(2048) < 20 * max(seconds(256), 0.01)


def test_reads_well() -> None:
    groups = trace_groups(mlp(4, 6, 2), torch.randn(1, 4))
    assert repr(groups) == "ChannelGroups: 1 groups, 6 units\n  0: 6 units, read by 2"
    assert "<td>0</td><td>6</td><td>0</td><td>2</td>" in groups._repr_html_()
    assert len(groups) == 1
    assert repr(groups["0"]) == "ChannelGroup(0: 6 units, 3 slices)"
    html = groups["0"]._repr_html_()
    assert "<caption>0: 6 units</caption><tr><th>tensor</th>" in html
    assert "<tr><td>2.weight</td><td>1</td><td>6</td><td>consumer</td></tr></table>" in html


# what is refused -------------------------------------------------------------------------------


def test_names_the_module_that_fails() -> None:
    network = nn.Sequential(mlp(4, 6, 2), nn.Linear(3, 2))
    with pytest.raises(TraceError, match=r"^1: the network failed on example_input \(\(5, 4\)\)"):
        trace_groups(network, torch.randn(5, 4))
    with pytest.raises(TraceError, match=r"^0\.0: .*\(\(5, 7\)\)"):
        trace_groups(network, torch.randn(5, 7))


def deciding(look: Callable[[Tensor], Any]) -> nn.Module:
    """A block that looks at what it gets, or at what it makes of it, between two layers."""

    def block(self, x):
        return self.d(x) if look(x) else self.c(x)

    inner = Forward(block, c=nn.Linear(6, 5), d=nn.Linear(6, 5))

    def forward(self, x):
        return self.b(F.relu(self.block(F.relu(self.e(self.a(x))))))

    return Forward(forward, a=nn.Linear(4, 6), e=nn.Linear(6, 6), block=inner, b=nn.Linear(5, 2))


LOOKS = {
    "bool": lambda x: x.mean() < -99,
    "item": lambda x: x.sum().item() < -99,
    "float": lambda x: float(x.detach().abs().argmax()) < 0,
    "int": lambda x: int(x[0, 0]) < -99,
    "tolist": lambda x: x.tolist() == [],
    "numpy": lambda x: x.numpy().size == 0,
    "array": lambda x: np.asarray(x).size == 0,
    "index": lambda x: operator.index(x.argmax()) == 99,
    "equal": lambda x: torch.equal(x, x + 1),
    "allclose": lambda x: torch.allclose(x, x + 1),
    "contains": lambda x: -99.0 in x,
    "is_nonzero": lambda x: torch.is_nonzero((x < -99).any()),
}


@pytest.mark.parametrize("call", LOOKS)
def test_decisions_by_values_are_refused_unless_their_module_is_a_black_box(call: str) -> None:
    network, x = deciding(LOOKS[call]), torch.randn(1, 4)
    with pytest.raises(TraceError, match=rf'^block: calls {call}\(\) .*ignore=\["block"\]'):
        trace_groups(network, x)
    groups = trace_groups(network, x, ["block"])
    # The block reads what `e` puts out, in ways that one run does not show.
    assert groups.sizes == {"a": 6}
    assert "in block" in groups.frozen.pop("e")
    assert groups.frozen == {
        "block.c": "named in ignore",
        "block.d": "did not run for example_input",
        "b": "reaches the output of the network",
    }


def test_decisions_of_the_network_itself_and_in_ways_around_them() -> None:
    def forward(self, x, mask=None):
        if mask is not None and mask.any():
            raise ArithmeticError("too much")
        return self.b(self.a(x))

    network = Forward(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    x = torch.randn(1, 4)
    assert set(trace_groups(network, x)) == {"a"}
    with pytest.raises(TraceError, match=r"^Forward: calls bool\(\) .*a module of its own"):
        trace_groups(network, (x, x > 0))


def test_values_that_do_not_depend_on_the_input_may_decide() -> None:
    def forward(self, x):
        if self.factor.item() < 0 or self.count > 3 or torch.rand(1) > 2:
            x = -x
        size = torch.tensor(x.shape)
        x = self.a(x).reshape(int(size[0]), -1)
        return self.b(F.relu(x[: len(x)]))

    network = Forward(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    network.register_parameter("factor", nn.Parameter(torch.ones(())))
    network.register_buffer("count", torch.zeros(()))
    groups = trace_groups(network, torch.randn(2, 4))
    assert groups.sizes == {"a": 6}


def test_masks_that_torch_itself_looks_at_are_fine() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, x, mask):
        return self.head(self.encoder(self.embed(x), mask))

    network = Forward(forward, embed=nn.Linear(3, 8), encoder=encoder, head=nn.Linear(8, 2))
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    groups = trace_groups(network, (torch.randn(2, 5, 3), mask))
    assert groups.sizes["encoder.layers.0.linear1"] == 12


def test_decisions_in_training_mode_do_not_matter() -> None:
    def forward(self, x):
        y = F.relu(self.a(x))
        if self.training and x.mean() > 0:
            y = y + 0.1
        return (self.b(y), self.aux(y)) if self.training else self.b(y)

    network = Forward(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 2), aux=nn.Linear(6, 2))
    groups = trace_groups(network, torch.randn(2, 4))
    assert groups["a"].modules("consumer") == ["b", "aux"]


def test_layers_that_did_not_run_are_named() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.ones(2, 2))

    def forward(self, x):
        return self.b(self.a(x) + self.used)

    network = Forward(
        forward,
        a=nn.Linear(4, 6),
        b=nn.Linear(6, 2),
        c=nn.Linear(3, 3),
        d=Own(),
        n=nn.BatchNorm1d(2),
    )
    network.register_parameter("used", nn.Parameter(torch.ones(1, 6)))
    groups = trace_groups(network, torch.randn(1, 4))
    assert {n: why for n, why in groups.frozen.items() if n != "b"} == {
        "c": "did not run for example_input",
        "d": "did not run for example_input",
    }


@pytest.mark.parametrize(
    ("wrap", "way"),
    [
        (parametrizations.weight_norm, "parametrize.remove_parametrizations"),
        (parametrizations.spectral_norm, "parametrize.remove_parametrizations"),
        (lambda layer: prune.l1_unstructured(layer, "weight", 2), "prune.remove"),
        (nn.utils.spectral_norm, "remove_spectral_norm"),
    ],
)
def test_weights_that_are_computed_anew_say_how_to_make_them_parameters(wrap, way) -> None:
    network = nn.Sequential(nn.Linear(4, 6), wrap(nn.Linear(6, 5)), nn.Linear(5, 2))
    with pytest.raises(TraceError, match=rf"computed anew .* with torch\.nn\.utils\.{way} first"):
        trace_groups(network, torch.randn(1, 4))
    network = nn.Sequential(mlp(4, 5, 4), network)
    groups = trace_groups(network, torch.randn(1, 4))
    assert groups.sizes == {"0.0": 5, "0.2": 4}
    assert way in groups.frozen["1.1"]


@pytest.mark.parametrize("example_input", [None, {"x": torch.randn(1, 4)}, [torch.randn(1, 4)], 3])
def test_refuses_what_is_not_a_tensor_or_a_tuple(example_input) -> None:
    kind = type(example_input).__name__
    with pytest.raises(TraceError, match=rf"^example_input: expected .* got {kind}; .*\(value,\)"):
        trace_groups(mlp(4, 6, 2), example_input)


def test_refuses_what_is_not_a_network_or_a_list_of_names() -> None:
    with pytest.raises(TraceError, match="network: expected an nn.Module, got dict"):
        trace_groups({}, torch.randn(1, 4))
    with pytest.raises(TraceError, match="ignore: expected a list of module paths, got '0'"):
        trace_groups(mlp(4, 6, 2), torch.randn(1, 4), "0")


def test_a_network_that_takes_a_dictionary() -> None:
    def forward(self, batch):
        return self.b(self.a(batch["x"]))

    network = Forward(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    assert set(trace_groups(network, ({"x": torch.randn(2, 4)},))) == {"a"}


@pytest.mark.parametrize("example_input", [(), ("text",), torch.tensor(1.0), torch.randn(0, 4)])
def test_needs_a_batch(example_input) -> None:
    with pytest.raises(TraceError, match="example_input: expected a batched tensor"):
        trace_groups(mlp(4, 6, 2), example_input)


def test_refuses_unknown_names_in_ignore() -> None:
    with pytest.raises(TraceError, match="unknown modules: conv7, fc9"):
        trace_groups(mlp(4, 6, 2), torch.randn(1, 4), ["0", "conv7", "fc9"])


def test_refuses_networks_without_anything_to_prune() -> None:
    with pytest.raises(TraceError, match=r"Linear: no channel.*\(Linear: reaches the output"):
        trace_groups(nn.Linear(4, 2), torch.randn(1, 4))
    with pytest.raises(TraceError, match="Sequential: no channel .*no layer found"):
        trace_groups(nn.Sequential(nn.ReLU()), torch.randn(1, 4))
    with pytest.raises(TraceError, match="0: named in ignore"):
        trace_groups(mlp(4, 6, 2), torch.randn(1, 4), ["0"])


def test_refuses_what_it_cannot_look_into() -> None:
    x = torch.randn(1, 4)
    with pytest.raises(TraceError, match="expected an eager network, got OptimizedModule"):
        trace_groups(torch.compile(mlp(4, 6, 2), backend="eager"), x)
    with pytest.raises(TraceError, match=r"^0: expected an eager network, got OptimizedModule"):
        trace_groups(
            nn.Sequential(torch.compile(mlp(4, 6, 2), backend="eager"), nn.Linear(2, 2)), x
        )
    compiled = mlp(4, 6, 2)
    compiled[2].compile(backend="eager")
    with pytest.raises(TraceError, match=r"^2: expected an eager network"):
        trace_groups(compiled, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.trace(mlp(4, 6, 2), x)
    with pytest.raises(TraceError, match="expected an eager network"):
        trace_groups(scripted, x)
    with pytest.raises(TraceError, match="1: expected an eager network"):
        trace_groups(nn.Sequential(mlp(4, 4, 4), scripted), x)
    with pytest.raises(TraceError, match="0: expected initialized parameters"):
        trace_groups(nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2)), x)


# what stays as it was ----------------------------------------------------------------------------


def trace_on_purpose(network: nn.Module, x: Tensor) -> None:
    trace_groups(network, x, ignore=["0"])


def trace_in_vain(network: nn.Module, x: Tensor) -> None:
    with pytest.raises(TraceError):
        trace_groups(network, x[:, :1])


@pytest.mark.parametrize("use", [trace_on_purpose, trace_in_vain, cost])
def test_leaves_network_input_and_generators_alone(use) -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn(1)

    network = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), Noisy(), nn.Conv2d(6, 5, 3), nn.Dropout(), nn.ReLU(),
        nn.Conv2d(5, 4, 3),
    )  # fmt: skip
    network[1].eval()
    network[3].weight.requires_grad_(False)
    x = torch.randn(2, 3, 9, 9)

    def snapshot() -> list[Any]:
        out: list[Any] = [torch.get_rng_state(), vars(x), torch.is_grad_enabled()]
        for name, module in network.named_modules():
            fields = {k: v for k, v in vars(module).items() if not k.startswith("_")}
            hooks = [len(module._forward_hooks), len(module._forward_pre_hooks)]
            out += [name, type(module), fields, hooks, sorted(vars(module))]
        for tensor in [*network.parameters(), *network.buffers()]:
            out += [id(tensor), vars(tensor), tensor.requires_grad, tensor.grad, tensor._version]
            out.append(tensor.detach().clone())
        return copy.deepcopy(out)

    def equal(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, Tensor) else a == b

    before = snapshot()
    if use is cost:
        cost(network, x)
    else:
        use(network, x)
    after = snapshot()
    assert len(before) == len(after)
    assert all(map(equal, before, after))


def test_counts_what_lies_outside_layers_as_fixed() -> None:
    def forward(self, x):
        x = self.a(x)
        return self.c(F.relu(self.b(torch.softmax(x @ x.mT, -1) @ x)))

    network = Forward(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 5), c=nn.Linear(5, 2))
    x = torch.randn(2, 3, 4)
    groups = trace_groups(network, x)
    assert groups.fixed_macs == 2 * 3 * 3 * 6
    assert CostModel(groups)({}) == cost(network, x)
