"""Structured sparse convolutions, against dense ones with a mask made by definition."""

import itertools

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from bayesprune import models
from bayesprune.errors import ConfigError
from bayesprune.layers import StructuredSparseConv2d, sparse_patterns, to_structured_sparse


def mask(layer: StructuredSparseConv2d) -> torch.Tensor:
    """How many weights a dense kernel would have at each place: 0, 1 or, for two parts, 2."""
    k = layer.kernel_size
    count = torch.zeros(layer.out_channels, layer.in_channels, k, k)
    for o, i in itertools.product(range(layer.out_channels), range(layer.in_channels)):
        if (o - i) % layer.p == 0:
            count[o, i, k // 2, k // 2] += 1
        if k > 1 and (o - i) % layer.g == 0:
            for y, x in itertools.product(range(k), range(k)):
                count[o, i, y, x] += (y + x) % 2 == (o % layer.g + o // layer.g) % 2
    return count


SHAPES = [
    # inputs, outputs, kernel, p, g, stride, padding, dilation
    (8, 8, 3, 2, 4, 1, 1, 1),
    (7, 10, 3, 3, 2, 2, 1, 1),
    (5, 9, 5, 4, 3, 1, 0, 1),
    (6, 4, 3, 1, 1, 1, 3, 2),
    (3, 2, 3, 7, 5, 1, 0, 2),
    (12, 6, 1, 5, 2, 2, 0, 1),
    (4, 4, 1, 4, 1, 1, 2, 1),
]


def layer(shape, bias: bool = True) -> StructuredSparseConv2d:
    inputs, outputs, kernel, p, g, stride, padding, dilation = shape
    made = StructuredSparseConv2d(
        inputs, outputs, kernel, p, g,
        stride=stride, padding=padding, dilation=dilation, bias=bias,
    )  # fmt: skip
    if bias:
        nn.init.normal_(made.bias)
    return made


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_dense_convolution_that_is_zero_elsewhere(shape) -> None:
    made = layer(shape).double()
    x = torch.randn(2, shape[0], 11, 9).double()
    weight = made.dense_weight()
    assert weight.shape == (shape[1], shape[0], shape[2], shape[2])
    expected = F.conv2d(x, weight, made.bias, shape[5], shape[6], shape[7])
    torch.testing.assert_close(made(x), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_pattern_is_the_one_defined_and_every_weight_has_its_place(shape) -> None:
    made = layer(shape, bias=False)
    expected = mask(made)
    assert torch.equal(made.dense_weight() != 0, expected > 0)
    assert sum(p.numel() for p in made.parameters()) == expected.sum()
    for parameter in made.parameters():
        nn.init.ones_(parameter)
    assert torch.equal(made.dense_weight().detach(), expected)


@pytest.mark.parametrize("g", [3, 4])
def test_every_input_is_read_through_both_colours(g: int) -> None:
    read = mask(StructuredSparseConv2d(8, 8, 3, p=8, g=g)).sum(0)
    assert (read > 0).all()


def test_depthwise_grouped_and_pointwise_are_special_cases() -> None:
    depthwise = mask(StructuredSparseConv2d(6, 6, 3, p=6, g=6)).sum((2, 3)) > 0
    assert torch.equal(depthwise, torch.eye(6, dtype=torch.bool))
    pointwise = StructuredSparseConv2d(6, 4, 1, p=1, g=1)
    assert (mask(pointwise) == 1).all()


@pytest.mark.parametrize(("kernel", "p", "g"), [(3, 4, 8), (3, 16, 2), (5, 8, 4), (1, 8, 1)])
def test_the_share_of_weights_is_that_of_the_formula_for_divisors(
    kernel: int, p: int, g: int
) -> None:
    made = StructuredSparseConv2d(16, 32, kernel, p, g, bias=False)
    weights = sum(parameter.numel() for parameter in made.parameters())
    share = 1 / p if kernel == 1 else 1 / (2 * g) + 1 / (p * kernel**2)
    assert weights / (16 * 32 * kernel**2) == pytest.approx(share, rel=1e-12)


@pytest.mark.parametrize("name", ["vgg19", "resnet32"])
@pytest.mark.parametrize("target", [0.10, 0.05, 0.025])
def test_the_search_finds_patterns_with_the_parameters_it_promises(name: str, target) -> None:
    with torch.device("meta"):
        network = models.create(name)
    dense = sum(p.numel() for p in network.parameters())
    patterns = sparse_patterns(network, target)
    assert patterns[0].fraction == pytest.approx(target, rel=0.05)
    # The distances grow with the sparsity that is asked for, and are not all the same.
    for pattern in (patterns[0], patterns[-1]):
        with torch.device("cpu"):
            sparse = to_structured_sparse(models.create(name), pattern.p, pattern.g)
        left = sum(p.numel() for p in sparse.parameters())
        assert left / dense == pytest.approx(pattern.fraction, rel=1e-12)


def test_networks_are_copied_trainable_and_keep_their_first_layer() -> None:
    network = models.create("resnet20").eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    sparse = to_structured_sparse(network, p=4, g=8)
    assert all(torch.equal(v, before[n]) for n, v in network.state_dict().items())
    kinds = {name: type(module) for name, module in sparse.named_modules()}
    assert kinds["conv1"] is nn.Conv2d
    assert kinds["layer3.2.conv2"] is StructuredSparseConv2d
    assert not any(module.training for module in sparse.modules())
    x = torch.randn(4, 3, 32, 32)
    out = sparse.train()(x)
    assert out.shape == (4, 10)
    assert 0.05 < out.std() < 20
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in sparse.parameters())


def test_bottlenecks_and_strides_of_resnet_50() -> None:
    network = torchvision.models.resnet50(num_classes=10)
    sparse = to_structured_sparse(network, p=8, g=16).eval()
    left = sum(isinstance(module, nn.Conv2d) for module in sparse.modules())
    assert left == 1
    with torch.no_grad():
        assert sparse(torch.randn(1, 3, 64, 64)).shape == (1, 10)


def test_a_state_dict_goes_back_and_forth() -> None:
    one, other = (to_structured_sparse(models.create("resnet20"), 4, 8) for _ in range(2))
    other.load_state_dict(one.state_dict())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(one.eval()(x), other.eval()(x))


def test_bad_arguments() -> None:
    with pytest.raises(ConfigError, match="kernel_size: expected an odd number, got 4"):
        StructuredSparseConv2d(4, 4, 4, 2, 2)
    with pytest.raises(ConfigError, match=r"StructuredSparseConv2d.p: .* integer .* got 0"):
        StructuredSparseConv2d(4, 4, 3, 0, 2)
    with pytest.raises(ConfigError, match="LeNet300_100: expected a convolution to replace"):
        to_structured_sparse(models.create("lenet300_100"), 2, 2)
    network = models.create("resnet20")
    with pytest.raises(ConfigError, match=r"expected a number in \(0, 1\), got 1.5"):
        sparse_patterns(network, 1.5)
    with pytest.raises(ConfigError, match="leave 0.001% of the parameters, the closest leave"):
        sparse_patterns(network, 1e-5)
