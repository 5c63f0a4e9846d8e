from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bayesprune import models
from bayesprune.cost import Cost, cost
from bayesprune.errors import ConfigError

# Widths published for BC-GNJ and BC-GHS (Louizos, Ullrich & Welling, NeurIPS 2017).
BC_GNJ_VGG = (63, 64, 128, 128, 245, 155, 63, 26, 24, 20, 14, 12, 11, 11)
BC_GHS_VGG = (51, 62, 125, 128, 228, 129, 38, 13, 9, 6, 5, 6, 6, 6)


def count(name: str, **kwargs: Any) -> Cost:
    with torch.device("meta"):
        return cost(models.create(name, **kwargs), torch.empty(1, *models.input_shape(name)))


def agrees(counted: int, printed: str) -> bool:
    """Whether the count, rounded to the digits that are printed, is the printed number."""
    digits = len(printed.split("e")[0].replace(".", "").lstrip("0"))
    return float(f"{counted:.{digits - 1}e}") == float(printed)


@pytest.mark.parametrize("name", models.names())
def test_every_model_maps_its_input_shape_to_ten_logits(name: str) -> None:
    with torch.device("meta"):
        network = models.create(name)
        logits = network(torch.empty(2, *models.input_shape(name)))
    assert logits.shape == (2, 10)
    assert network.training


@pytest.mark.parametrize("name", ["digits", "lenet300_100", "lenet5", "resnet20"])
def test_every_parameter_is_used(name: str) -> None:
    network = models.create(name, num_classes=7)
    network(torch.randn(2, *models.input_shape(name))).square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())


# Published sizes, to the last digit that is printed.
@pytest.mark.parametrize(
    ("name", "macs", "weights"),
    [
        ("lenet5", "2293000", "430500"),
        ("lenet300_100", "266200", "266200"),
        ("vgg16", "313.5e6", "14.98e6"),
        ("resnet56", "125.49e6", "0.849e6"),
        ("wrn28_10", "5.243e9", "36.46e6"),
    ],
)
def test_dense_sizes_match_the_literature(name: str, macs: str, weights: str) -> None:
    result = count(name)
    assert agrees(result.macs, macs)
    assert agrees(result.weights, weights)


def test_resnet56_has_853k_parameters_with_normalization() -> None:
    assert agrees(count("resnet56").params, "0.853e6")


@pytest.mark.parametrize(
    ("widths", "macs"),
    [
        ((2, 7, 478), "109.5e3"),  # FDOO 100K
        ((3, 8, 499), "150.5e3"),  # FDOO 200K
        ((3, 12, 500), "201.8e3"),  # group lasso
        ((7, 13, 16), "249.9e3"),  # generalized dropout
        ((4, 15, 58), "168.1e3"),  # GSS
        ((4, 20, 107), "220.9e3"),  # Group-GReg
        ((5, 18, 29), "224.6e3"),  # Group Pruner
    ],
)
def test_lenet5_of_published_widths_has_the_published_macs(
    widths: tuple[int, ...], macs: str
) -> None:
    assert agrees(count("lenet5", widths=widths).macs, macs)


@pytest.mark.parametrize(
    ("widths", "weights"),
    [
        ((4, 15, 58), "16.1e3"),
        ((4, 20, 107), "37.4e3"),
        ((5, 18, 29), "11.0e3"),
        ((2, 7, 478), "58.7e3"),
    ],
)
def test_lenet5_of_published_widths_has_the_published_weights(
    widths: tuple[int, ...], weights: str
) -> None:
    assert agrees(count("lenet5", widths=widths).weights, weights)


@pytest.mark.parametrize(
    ("widths", "macs", "weights"),
    [(BC_GNJ_VGG, "141.5e6", "1.00e6"), (BC_GHS_VGG, "121.9e6", "0.82e6")],
)
def test_vgg16_of_published_widths(widths: tuple[int, ...], macs: str, weights: str) -> None:
    result = count("vgg16", widths=widths)
    assert agrees(result.macs, macs)
    assert agrees(result.weights, weights)


def test_resnet56_with_the_inner_widths_of_dirichlet_pruning() -> None:
    result = count("resnet56", inner_widths=[6] * 9 + [11] * 9 + [16] * 9)
    assert agrees(result.macs, "40.88e6")
    assert agrees(result.weights, "0.233e6")
    assert agrees(result.params, "0.236e6")


def test_vgg19_has_16_convolutions() -> None:
    network = models.VGG(depth=19, widths=range(1, 18))
    convolutions = [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert convolutions == list(range(1, 17))
    assert network.fc1.out_features == 17


def test_lenet5_has_one_relu_and_it_follows_fc1() -> None:
    network = models.LeNet5(widths=(2, 3, 4)).eval()
    x = torch.randn(5, 1, 28, 28)
    maps = F.max_pool2d(network.conv1(x), 2)
    maps = F.max_pool2d(network.conv2(maps), 2)
    assert torch.equal(network(x), network.fc2(network.fc1(maps.flatten(1)).relu()))


def test_wide_resnet_has_its_stride_in_the_first_convolution() -> None:
    network = models.WideResNet(depth=10, width=1)
    strided = [name for name, m in network.named_modules() if getattr(m, "stride", 1) == (2, 2)]
    assert strided == ["layer2.0.conv1", "layer2.0.shortcut", "layer3.0.conv1", "layer3.0.shortcut"]


def test_padded_shortcut_subsamples_and_appends_zeros() -> None:
    block = models.ResNet(depth=8, shortcut="pad").layer2[0].eval()
    nn.init.zeros_(block.get_parameter("bn2.weight"))  # only the shortcut is left
    x = torch.rand(2, 16, 8, 8)
    out = block(x)
    assert torch.equal(out[:, :16], x[:, :, ::2, ::2])
    assert not out[:, 16:].any()


def test_convolutional_shortcut_is_only_between_stages() -> None:
    network = models.ResNet(depth=20, shortcut="conv")
    kernels = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert [(k.in_channels, k.out_channels) for k in kernels] == [(16, 32), (32, 64)]


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("lenet5", {"widths": (20, 50)}, r"LeNet5\.widths: expected 3 positive.*\[20, 50\]"),
        ("lenet300_100", {"widths": (0, 100)}, r"LeNet300_100\.widths: expected 2 positive"),
        ("digits", {"widths": ()}, r"DigitsNet\.widths: expected 4 positive"),
        ("vgg16", {"widths": [1] * 13}, r"VGG\.widths: expected 14 positive"),
        ("vgg16", {"depth": 11}, r"VGG\.depth: expected 16 or 19, got 11"),
        ("resnet20", {"depth": 51}, r"ResNet\.depth: expected 6n \+ 2 .* got 51"),
        ("resnet20", {"shortcut": "none"}, r"ResNet\.shortcut: .* got 'none'"),
        ("resnet20", {"inner_widths": [4]}, r"ResNet\.inner_widths: expected 9 positive"),
        ("wrn28_10", {"depth": 20}, r"WideResNet\.depth: expected 6n \+ 4 .* got 20"),
        ("wrn28_10", {"width": 0}, r"WideResNet\.width: expected at least 1, got 0"),
        ("lenet5", {"colour": 1}, r"model 'lenet5': .*colour"),
    ],
)
def test_unusable_arguments(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        models.create(name, **kwargs)


def test_unknown_names_list_the_known_ones() -> None:
    for ask in (models.create, models.input_shape):
        with pytest.raises(ConfigError, match=r"digits, lenet300_100, lenet5, .* got 'lenet6'"):
            ask("lenet6")


def test_load_finds_networks_in_three_places() -> None:
    lenet = models.load("bayesprune:lenet5", widths=[2, 3, 4])
    assert isinstance(lenet, models.LeNet5)
    assert lenet.conv2.out_channels == 3
    squeezenet = models.load("torchvision:squeezenet1_1", num_classes=3)
    assert squeezenet(torch.randn(1, 3, 64, 64)).shape == (1, 3)
    dropout = models.load("torch.nn:Dropout", p=0.25)
    assert isinstance(dropout, nn.Dropout)
    assert dropout.p == 0.25


def test_load_finds_the_users_own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\nsmall = lambda: nn.Linear(2, 3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert isinstance(models.load("my_networks:small"), nn.Linear)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lenet5", "expected 'bayesprune:NAME', .* got 'lenet5'"),
        ("bayesprune:", "expected 'bayesprune:NAME'"),
        ("bayesprune:lenet6", "got 'lenet6'"),
        ("torchvision:resnet19", "list_models.* got 'resnet19'"),
        ("no_such_package:net", "cannot import 'no_such_package'"),
        ("torch.nn:NoSuchLayer", "class or function 'NoSuchLayer' in 'torch.nn'"),
        ("torch.nn:Linear", "model 'torch.nn:Linear': .*in_features"),
        ("builtins:dict", "model 'builtins:dict': expected an nn.Module, got dict"),
    ],
)
def test_load_explains_what_it_cannot_find(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        models.load(spec)
