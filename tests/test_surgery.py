"""Removed = masked = folded, on a zoo of small networks; what must not change; what must fail."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayesprune import models
from bayesprune.cost import CostModel, cost
from bayesprune.errors import PlanError, TraceError
from bayesprune.gating import GatedNetwork
from bayesprune.groups import ChannelGroups, trace_groups
from bayesprune.plan import PruningPlan
from bayesprune.surgery import remove_channels

ZOO: dict[str, Callable[[], tuple[nn.Module, Any]]] = {}


def zoo(build: Callable[[], tuple[nn.Module, Any]]) -> Callable[[], tuple[nn.Module, Any]]:
    ZOO[build.__name__] = build
    return build


class Forward(nn.Module):
    """A network from named parts and a function of the parts and the inputs."""

    def __init__(self, forward: Callable[..., Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = forward

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def conv(inputs: int, outputs: int, size: int = 3, **kwargs: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **kwargs)


def unit(inputs: int, outputs: int, size: int = 3, **kwargs: Any) -> nn.Sequential:
    return nn.Sequential(conv(inputs, outputs, size, **kwargs), nn.BatchNorm2d(outputs), nn.ReLU())


def head(channels: int, classes: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


IMAGE = (2, 3, 8, 8)


@zoo
def plain():
    return nn.Sequential(unit(3, 8), unit(8, 6), head(6)), IMAGE


@zoo
def residual():
    def forward(self, x):
        x = self.stem(x)
        x = F.relu(x + self.block2(self.block1(x)))
        y = self.block3(x)
        y = y * 1
        y += self.block4(x)
        return self.head(torch.tanh(y))

    parts = {f"block{i}": unit(8, 8) for i in (1, 2, 3, 4)}
    return Forward(forward, stem=unit(3, 8), head=head(8), **parts), IMAGE


@zoo
def preactivation():
    def forward(self, x):
        x = self.stem(x)
        x = x + self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return self.head(F.relu(self.bn3(x)))

    return Forward(
        forward,
        **{"stem": conv(3, 8), "bn1": nn.BatchNorm2d(8), "conv1": conv(8, 10)},
        **{"bn2": nn.BatchNorm2d(10), "conv2": conv(10, 8), "bn3": nn.BatchNorm2d(8)},
        head=head(8),
    ), IMAGE


@zoo
def concatenation():
    def forward(self, x):
        x = self.stem(x)
        return self.head(torch.cat([self.left(x), x, self.right(x)], 1))

    return Forward(
        forward, stem=unit(3, 6), left=unit(6, 4), right=unit(6, 5, 1), head=head(15)
    ), IMAGE


@zoo
def dense_net():
    def forward(self, x):
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        x = self.transition(torch.cat(features, dim=1))
        return self.head(x)

    layers = nn.ModuleList(
        nn.Sequential(nn.BatchNorm2d(8 + 4 * i), nn.ReLU(), conv(8 + 4 * i, 4)) for i in range(3)
    )
    return Forward(
        forward, stem=conv(3, 8), layers=layers, transition=unit(20, 10, 1), head=head(10)
    ), IMAGE


@zoo
def depthwise_separable():
    return nn.Sequential(
        unit(3, 8), unit(8, 8, groups=8), unit(8, 12, 1), unit(12, 12, groups=12), unit(12, 6, 1),
        head(6),
    ), IMAGE  # fmt: skip


@zoo
def depth_multiplier():
    return nn.Sequential(unit(3, 8), unit(8, 24, groups=8), unit(24, 6, 1), head(6)), IMAGE


@zoo
def grouped():
    return nn.Sequential(
        unit(3, 12), unit(12, 24, groups=4), unit(24, 6, 1), unit(6, 9, groups=3), unit(9, 4),
        head(4),
    ), IMAGE  # fmt: skip


@zoo
def group_norm():
    return nn.Sequential(
        conv(3, 12), nn.GroupNorm(4, 12), nn.ReLU(), conv(12, 6), nn.GroupNorm(6, 6), nn.ReLU(),
        conv(6, 8), nn.GroupNorm(2, 8), head(8),
    ), IMAGE  # fmt: skip


@zoo
def instance_norm():
    return nn.Sequential(
        conv(3, 8), nn.InstanceNorm2d(8, affine=True, track_running_stats=True), nn.ReLU(),
        conv(8, 6), nn.InstanceNorm2d(6), nn.ReLU(), head(6),
    ), IMAGE  # fmt: skip


@zoo
def squeeze_excitation():
    def forward(self, x):
        x = self.stem(x)
        weight = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(F.relu(self.project(x * weight)))

    return Forward(
        forward, stem=unit(3, 8), down=conv(8, 4, 1), up=conv(4, 8, 1), project=conv(8, 6, 1),
        head=head(6),
    ), IMAGE  # fmt: skip


@zoo
def spatial_attention():
    def forward(self, x):
        x = self.stem(x)
        return self.head(x * torch.sigmoid(self.mask(self.inner(x))))

    return Forward(
        forward, stem=unit(3, 8), inner=unit(8, 6), mask=conv(6, 1, 1), head=head(8)
    ), IMAGE


@zoo
def chunk():
    def forward(self, x):
        a, b = self.conv1(x).chunk(2, dim=1)
        return self.head(self.conv2(a * torch.sigmoid(b)))

    return Forward(forward, conv1=conv(3, 12), conv2=conv(6, 7), head=head(7)), IMAGE


@zoo
def split_of_fixed_size():
    def forward(self, x):
        a, b = torch.split(self.conv1(self.stem(x)), [4, 8], dim=1)
        return self.head(torch.cat([self.conv2(a), self.conv3(b)], 1))

    return Forward(
        forward, stem=unit(3, 6), conv1=conv(6, 12), conv2=conv(4, 6), conv3=conv(8, 7),
        head=head(13),
    ), IMAGE  # fmt: skip


@zoo
def channel_shuffle():
    def forward(self, x):
        x = self.conv1(x)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        return self.head(self.conv2(x))

    return Forward(forward, conv1=conv(3, 12), conv2=conv(12, 7), head=head(7)), IMAGE


@zoo
def shuffle_unit():
    """Half of the channels pass, half are transformed, and both are shuffled together."""

    def forward(self, x):
        x = self.stem(x)
        a, b = x.chunk(2, 1)
        x = torch.cat([a, self.branch(b)], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.last(x))

    return Forward(
        forward, stem=unit(3, 12), branch=unit(6, 6), last=unit(12, 7), head=head(7)
    ), IMAGE


@zoo
def prelu():
    return nn.Sequential(
        conv(3, 8), nn.PReLU(8, 0.3), conv(8, 6), nn.PReLU(), nn.Flatten(), nn.Linear(384, 7),
        nn.PReLU(7, 0.1), nn.Linear(7, 5),
    ), IMAGE  # fmt: skip


@zoo
def layer_scale():
    def forward(self, x):
        x = self.stem(x)
        x = x + self.gamma * self.conv1(x)
        x = x + self.delta.view(1, -1, 1, 1) * self.conv2(x)
        x = x + self.eps[:, None, None].exp() * self.conv3(x)
        return self.head(x)

    parts = {f"conv{i}": conv(8, 8) for i in (1, 2, 3)}
    return Forward(
        forward,
        gamma=nn.Parameter(torch.rand(8, 1, 1)),
        delta=nn.Parameter(torch.rand(8)),
        eps=nn.Parameter(torch.rand(8)),
        stem=unit(3, 8),
        head=head(8),
        **parts,
    ), IMAGE


@zoo
def flatten():
    return nn.Sequential(
        unit(3, 6), nn.MaxPool2d(2), unit(6, 5), nn.Flatten(), nn.Linear(80, 12),
        nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 5),
    ), IMAGE  # fmt: skip


@zoo
def norm_behind_flatten():
    return nn.Sequential(
        conv(3, 6), nn.Flatten(), nn.BatchNorm1d(384), nn.ReLU(), nn.Linear(384, 12), nn.Tanh(),
        nn.Linear(12, 5),
    ), IMAGE  # fmt: skip


@zoo
def unflatten():
    def forward(self, x):
        x = F.relu(self.fc(x))
        x = x.view(x.shape[0], -1, 4, 4)
        return self.conv(F.relu(self.up(x)))

    return Forward(
        forward, fc=nn.Linear(7, 96), up=nn.ConvTranspose2d(6, 8, 4, 2, 1), conv=conv(8, 3)
    ), (2, 7)


@zoo
def shared_module():
    def forward(self, x):
        x = self.stem(x)
        return self.head(self.shared(F.relu(self.shared(x))))

    return Forward(forward, stem=unit(3, 8), shared=conv(8, 8), head=head(8)), IMAGE


@zoo
def shared_block():
    """A whole block used for two inputs of a siamese network."""

    def forward(self, x, y):
        x, y = self.shared(self.left(x)), self.shared(self.right(y))
        return self.last(torch.cat([x, y], 1))

    return Forward(
        forward, left=conv(3, 8), right=conv(3, 8), last=nn.Sequential(unit(12, 5), head(5)),
        shared=nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), conv(8, 6), nn.BatchNorm2d(6)),
    ), (IMAGE, IMAGE)  # fmt: skip


@zoo
def shared_norm():
    """Two layers of their own, one normalization for both."""

    def forward(self, x):
        x = F.relu(self.norm(self.conv1(x)))
        return self.head(F.relu(self.norm(self.conv2(x))))

    return Forward(
        forward, conv1=conv(3, 8), conv2=conv(8, 8), norm=nn.BatchNorm2d(8), head=head(8)
    ), IMAGE


@zoo
def tied_weights():
    def forward(self, x):
        x = F.relu(self.fc0(x))
        return self.last(F.relu(self.inner(F.relu(self.fc2(F.relu(self.fc1(x)))))))

    network = Forward(
        forward, fc0=nn.Linear(7, 9), fc1=nn.Linear(9, 9), fc2=nn.Linear(9, 9),
        inner=nn.Linear(9, 8), last=nn.Linear(8, 5),
    )  # fmt: skip
    network.fc2.weight = network.fc1.weight
    return network, (2, 7)


@zoo
def borrowed_weight():
    """An auto-encoder whose decoder is the transposed encoder."""

    def forward(self, x):
        h = F.relu(self.encoder(F.relu(self.first(x))))
        h = F.relu(self.inner2(F.relu(self.inner(h))))
        return self.last(F.relu(F.linear(h, self.encoder.weight.t())))

    return Forward(
        forward, first=nn.Linear(7, 9), encoder=nn.Linear(9, 6), inner=nn.Linear(6, 8),
        inner2=nn.Linear(8, 6), last=nn.Linear(9, 5),
    ), (2, 7)  # fmt: skip


@zoo
def transposed():
    return nn.Sequential(
        unit(3, 8), nn.ConvTranspose2d(8, 6, 2, 2), nn.BatchNorm2d(6), nn.ReLU(),
        nn.ConvTranspose2d(6, 6, 3, 2, 1, 1, groups=3, bias=False), nn.ReLU(), conv(6, 3),
    ), IMAGE  # fmt: skip


@zoo
def one_dimensional():
    return nn.Sequential(
        nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(8, 6, 3, dilation=2), nn.GELU(), nn.AdaptiveAvgPool1d(2), nn.Flatten(),
        nn.Linear(12, 5),
    ), (2, 3, 20)  # fmt: skip


@zoo
def three_dimensional():
    return nn.Sequential(
        nn.Conv3d(2, 6, 3), nn.BatchNorm3d(6), nn.ReLU(),
        nn.Conv3d(6, 5, 3, padding_mode="circular"), nn.Flatten(), nn.Linear(40, 5),
    ), (2, 2, 6, 6, 6)  # fmt: skip


@zoo
def sigmoid():
    """Activations that are not zero at zero, and an operation without a module."""
    return nn.Sequential(
        conv(3, 8), nn.Sigmoid(), conv(8, 6), nn.Softplus(), nn.BatchNorm2d(6), nn.ELU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(96, 8), nn.Sigmoid(), nn.Linear(8, 5),
    ), IMAGE  # fmt: skip


@zoo
def many_outputs():
    @dataclass
    class Result:
        logits: Tensor
        features: list[Tensor]

    def forward(self, x):
        x = self.stem(x)
        aux = self.aux(x)
        return {"out": self.head(self.last(x)), "more": [Result(self.head2(aux), [aux])]}

    return Forward(
        forward, stem=unit(3, 8), aux=unit(8, 4), last=unit(8, 6), head=head(6), head2=head(4)
    ), IMAGE


@zoo
def many_inputs():
    def forward(self, image, table):
        x = F.relu(self.conv(image)).mean((2, 3)) + F.relu(self.fc(table))
        return self.last(x)

    return Forward(forward, conv=conv(3, 8), fc=nn.Linear(4, 8), last=nn.Linear(8, 5)), (
        IMAGE,
        (2, 4),
    )


@zoo
def frozen_parameters():
    network = nn.Sequential(unit(3, 8), unit(8, 6), head(6))
    network[0].requires_grad_(False)
    network[1][0].weight.requires_grad_(False)
    return network, IMAGE


@zoo
def u_net():
    def forward(self, x):
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.bottom(F.max_pool2d(b, 2))
        b = self.up2(torch.cat([F.interpolate(c, scale_factor=2), b], 1))
        a = self.up1(torch.cat([self.rise(b), a], 1))
        return self.last(a)

    return Forward(
        forward, down1=unit(3, 6), down2=unit(6, 8), bottom=unit(8, 10), up2=unit(18, 8),
        rise=nn.ConvTranspose2d(8, 5, 2, 2), up1=unit(11, 6), last=conv(6, 2, 1),
    ), IMAGE  # fmt: skip


@zoo
def tokens():
    """Linear layers over tokens, an embedding with positions, and a mean over the tokens."""

    def forward(self, index):
        x = self.embedding(index) + self.position + self.shift
        x = x + self.mlp(x)
        return self.last(x.mean(1))

    return Forward(
        forward,
        embedding=nn.Embedding(11, 8),
        position=nn.Parameter(torch.randn(1, 6, 8)),
        shift=nn.Parameter(torch.randn(6, 1)),
        mlp=nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8)),
        last=nn.Linear(8, 5),
    ), torch.arange(12).reshape(2, 6) % 11


@zoo
def mixer():
    """Layers over tokens and over channels by turns."""

    def forward(self, x):
        x = self.embed(x)
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(x)
        return self.last(x.mean(1))

    def mlp(width: int, hidden: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    return Forward(
        forward, embed=nn.Linear(4, 8), tokens=mlp(6, 10), channels=mlp(8, 12), last=nn.Linear(8, 5)
    ), (2, 6, 4)


@zoo
def attention():
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(4, 8)
            self.encoder = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
            self.last = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.encoder(self.embed(x)).mean(1))

    return Network(), (2, 6, 4)


@zoo
def normalized_features():
    """A norm over channels on one path (its channels stay), over positions on the other."""

    def forward(self, x):
        x = self.stem(x)
        a = self.left(F.normalize(self.conv1(x), 2, 1))
        b = self.right(F.normalize(self.conv2(x), dim=3))
        return self.head(torch.cat([a, b], 1))

    return Forward(
        forward, stem=unit(3, 8), conv1=conv(8, 6), conv2=conv(8, 7), left=unit(6, 4),
        right=unit(7, 4), head=head(8),
    ), IMAGE  # fmt: skip


@zoo
def norms_without_parameters():
    return nn.Sequential(
        conv(3, 8), nn.GroupNorm(4, 8, affine=False), nn.ReLU(), conv(8, 6),
        nn.BatchNorm2d(6, affine=False), nn.ReLU(), conv(6, 8),
        nn.BatchNorm2d(8, affine=False, track_running_stats=False), nn.ReLU(), head(8),
    ), IMAGE  # fmt: skip


@zoo
def written_in_place():
    def forward(self, x):
        x = self.stem(x)
        y = self.conv1(x)
        out = torch.zeros(x.shape[0], 14, 8, 8)
        out[:, :8] = x
        out[:, 8:] = y
        return self.head(self.last2(self.last1(out)))

    return Forward(
        forward,
        stem=unit(3, 8),
        conv1=conv(8, 6),
        last1=unit(14, 5),
        last2=unit(5, 6),
        head=head(6),
    ), IMAGE


@zoo
def constants():
    """Constants of a fixed size along the channels: a buffer is cut, other tensors hold on."""

    def forward(self, x):
        x = self.conv1(x) * self.norm.running_var.view(1, -1, 1, 1)
        x = self.conv2(self.norm(x)) + torch.arange(6.0).view(-1, 1, 1)
        x = self.conv3(torch.where(x > 0, x, torch.zeros_like(x)))
        return self.head(x * (torch.ones_like(x) * 2))

    return Forward(
        forward, conv1=conv(3, 8), norm=nn.BatchNorm2d(8), conv2=conv(8, 6), conv3=conv(6, 7),
        head=head(7),
    ), IMAGE  # fmt: skip


@zoo
def parametrized():
    network = nn.Sequential(unit(3, 8), unit(8, 6), unit(6, 7), head(7))
    nn.utils.parametrizations.weight_norm(network[1][0])
    return network, IMAGE


def model(name: str, **kwargs: Any) -> Callable[[], tuple[nn.Module, Any]]:
    return lambda: (models.create(name, **kwargs), (2, *models.input_shape(name)))


def torchvision_model(name: str, size: int) -> Callable[[], tuple[nn.Module, Any]]:
    return lambda: (models.load(f"torchvision:{name}", num_classes=5), (2, 3, size, size))


ZOO["lenet300_100"] = model("lenet300_100")
ZOO["lenet5"] = model("lenet5")
ZOO["digits"] = model("digits")
ZOO["vgg16"] = model("vgg16", widths=(8,) * 14)
ZOO["resnet20_pad"] = model("resnet20")
ZOO["resnet20_conv"] = model("resnet20", shortcut="conv")
ZOO["wrn"] = lambda: (models.WideResNet(depth=10, width=1), (2, 3, 32, 32))
ZOO["resnet18"] = torchvision_model("resnet18", 33)
ZOO["mobilenet_v3_small"] = torchvision_model("mobilenet_v3_small", 33)
ZOO["shufflenet_v2_x0_5"] = torchvision_model("shufflenet_v2_x0_5", 33)

# What is prunable in them; where something freezes, its reason.
FOUND = {
    "plain": {"0.0": 8, "1.0": 6},
    "residual": {"stem.0": 8, "block1.0": 8, "block3.0": 8},
    "preactivation": {"stem": 8, "conv1": 10},
    "concatenation": {"stem.0": 6, "left.0": 4, "right.0": 5},
    "dense_net": {"stem": 8, "layers.0.2": 4, "layers.1.2": 4, "layers.2.2": 4, "transition.0": 10},
    "depthwise_separable": {"0.0": 8, "2.0": 12, "4.0": 6},
    "depth_multiplier": {"0.0": 8, "2.0": 6},
    "grouped": {"0.0": 4, "2.0": 3, "4.0": 4},
    "group_norm": {"0": 4, "3": 6, "6": 2},
    "instance_norm": {"0": 8, "3": 6},
    "squeeze_excitation": {"stem.0": 8, "down": 4, "project": 6},
    "spatial_attention": {"stem.0": 8, "inner.0": 6},
    "chunk": {"conv1": 6, "conv2": 7},
    "split_of_fixed_size": {"stem.0": 6, "conv2": 6, "conv3": 7},
    "channel_shuffle": {"conv1": 6, "conv2": 7},
    "shuffle_unit": {"stem.0": 6, "last.0": 7},
    "prelu": {"0": 8, "2": 6, "5": 7},
    "layer_scale": {"stem.0": 8},
    "flatten": {"0.0": 6, "2.0": 5, "4": 12},
    "norm_behind_flatten": {"0": 6, "4": 12},
    "unflatten": {"fc": 6, "up": 8},
    "shared_module": {"stem.0": 8},
    "shared_block": {"left": 8, "shared.2": 6, "last.0.0": 5},
    "shared_norm": {"conv1": 8},
    "tied_weights": {"inner": 8},
    "borrowed_weight": {"inner": 8},
    "transposed": {"0.0": 8, "1": 3},
    "one_dimensional": {"0": 8, "4": 6},
    "three_dimensional": {"0": 6, "3": 5},
    "sigmoid": {"0": 8, "2": 6, "8": 8},
    "many_outputs": {"stem.0": 8, "last.0": 6},
    "many_inputs": {"conv": 8},
    "frozen_parameters": {"0.0": 8, "1.0": 6},
    "u_net": {"down1.0": 6, "down2.0": 8, "bottom.0": 10, "up2.0": 8, "rise": 5, "up1.0": 6},
    "tokens": {"embedding": 8, "mlp.0": 12},
    "mixer": {"tokens.0": 10, "channels.0": 12},
    "attention": {"encoder.self_attn": 2, "encoder.linear1": 12},
    "normalized_features": {"stem.0": 8, "left.0": 4, "conv2": 7, "right.0": 4},
    "norms_without_parameters": {"3": 6, "6": 8},
    "written_in_place": {"last1.0": 5, "last2.0": 6},
    "constants": {"conv1": 8, "conv3": 7},
    "parametrized": {"2.0": 7},
    "lenet300_100": {"pixels": 784, "fc1": 300, "fc2": 100},
    "lenet5": {"conv1": 20, "conv2": 50, "fc1": 500},
    "digits": {"conv1": 32, "conv2": 64, "conv3": 64, "fc1": 64},
}  # fmt: skip
NUMBERS = {
    "vgg16": (14, 14 * 8),
    "resnet20_pad": (10, 4 * 16 + 3 * 32 + 3 * 64),
    "resnet20_conv": (12, 4 * 16 + 4 * 32 + 4 * 64),
    "wrn": (6, 2 * 16 + 2 * 32 + 2 * 64),
    "resnet18": (12, 3 * 64 + 3 * 128 + 3 * 256 + 3 * 512),
    "mobilenet_v3_small": (27, None),
    "shufflenet_v2_x0_5": (21, None),
}


def liven(network: nn.Module) -> nn.Module:
    """Statistics and offsets as after training, so that a removed channel would be missed."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm):
            for name in ("weight", "running_var"):
                if getattr(module, name, None) is not None:
                    getattr(module, name).data.uniform_(0.5, 1.5)
            for name in ("bias", "running_mean"):
                if getattr(module, name, None) is not None:
                    getattr(module, name).data.normal_()
    return network


def example(shape: Any) -> Any:
    if isinstance(shape, Tensor):
        return shape
    return tuple(map(example, shape)) if isinstance(shape[0], tuple) else torch.randn(shape)


def build(name: str) -> tuple[nn.Module, Any]:
    network, shape = ZOO[name]()
    return liven(network), example(shape)


def random_plan(groups: ChannelGroups, seed: int = 0) -> PruningPlan:
    """Removes 30-60% of each group, at least one unit wherever there are two."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for name, size in groups.sizes.items():
        share = 0.4 + 0.3 * torch.rand((), generator=generator).item()
        count = max(1, min(size - 1, round(share * size)))
        kept[name] = sorted(torch.randperm(size, generator=generator)[:count].tolist())
    return PruningPlan(kept, groups.sizes, "random", CostModel(groups)(kept))


def tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if hasattr(output, "__dict__"):
        output = vars(output)
    values = output.values() if isinstance(output, dict) else output
    return [tensor for value in values for tensor in tensors(value)]


def run(network: nn.Module, inputs: Any) -> list[Tensor]:
    network = network.eval()
    return tensors(network(*inputs) if isinstance(inputs, tuple) else network(inputs))


def assert_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    assert [t.shape for t in actual] == [t.shape for t in expected]
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ZOO)
def test_removed_is_masked_is_folded(name: str) -> None:
    network, inputs = build(name)
    groups = trace_groups(network, inputs)
    if name in FOUND:
        assert groups.sizes == FOUND[name]
    else:
        number, units = NUMBERS[name]
        assert len(groups) == number
        assert units in (None, sum(groups.sizes.values()))
    assert all(group.exact for group in groups.values())
    plan = random_plan(groups)
    small = remove_channels(network, plan, inputs)
    gated = GatedNetwork(network, groups).eval()

    masked = tensors(gated(inputs, plan.masks()))
    assert_close(run(small, inputs), masked)
    assert_close(run(gated.fold(plan.masks()), inputs), masked)
    dense = run(network, inputs)
    assert [t.shape for t in dense] == [t.shape for t in masked]
    assert not all(torch.allclose(a, b, rtol=1e-3) for a, b in zip(dense, masked, strict=True))

    assert cost(small, inputs) == plan.cost
    assert cost(network, inputs) == CostModel(groups)({})
    assert plan.cost.params < cost(network, inputs).params

    for parameter in small.parameters():
        parameter.requires_grad_(True)
    small.train()
    output = small(*inputs) if isinstance(inputs, tuple) else small(inputs)
    sum(tensor.square().sum() for tensor in tensors(output)).backward()
    assert all(p.grad is None or p.grad.shape == p.shape for p in small.parameters())
    assert any(p.grad is not None for p in small.parameters())


def trained() -> tuple[nn.Module, Tensor]:
    """A network in training mode, with one module in the other mode and one frozen weight."""
    network, inputs = build("residual")
    network.train()
    network.block1[1].eval()
    network.block2[0].weight.requires_grad_(False)
    return network, inputs


def uses(network: nn.Module, inputs: Any) -> None:
    groups = trace_groups(network, inputs)
    plan = random_plan(groups)
    small = remove_channels(network, plan, inputs)
    small.train()(inputs).sum().backward()
    gated = GatedNetwork(network, groups)
    gated(inputs, plan.masks())
    gated.fold(plan.masks())(inputs)
    with pytest.raises(PlanError):
        remove_channels(network, PruningPlan({"stem.0": [1]}, {"stem.0": 3}), inputs)


def test_the_network_and_the_generators_stay_as_they_were() -> None:
    network, inputs = trained()
    modules = {name: set(vars(module)) for name, module in network.named_modules()}
    modes = [module.training for module in network.modules()]
    tensors = [*network.parameters(), *network.buffers()]
    kept = [(id(t), t._version, t.requires_grad, t.detach().clone()) for t in tensors]
    state = torch.get_rng_state()
    uses(network, inputs)
    assert torch.equal(state, torch.get_rng_state())
    assert {name: set(vars(module)) for name, module in network.named_modules()} == modules
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert [module.training for module in network.modules()] == modes
    tensors = [*network.parameters(), *network.buffers()]
    for (identity, version, grad, value), tensor in zip(kept, tensors, strict=True):
        assert (identity, version, grad) == (id(tensor), tensor._version, tensor.requires_grad)
        assert torch.equal(value, tensor)
        assert tensor.grad is None
        assert not vars(tensor)
    assert not vars(inputs)


def test_the_small_network_is_like_the_large_one() -> None:
    network, inputs = trained()
    small = remove_channels(network, random_plan(trace_groups(network, inputs)), inputs)
    assert type(small) is type(network)
    assert list(small.state_dict()) == list(network.state_dict())
    pairs = list(zip(small.modules(), network.modules(), strict=True))
    assert all(type(a) is type(b) and a.training == b.training for a, b in pairs)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in small.modules())
    for a, b in zip(small.parameters(), network.parameters(), strict=True):
        assert a.requires_grad == b.requires_grad
        assert a.is_leaf
        assert isinstance(a, nn.Parameter)
        assert a.data_ptr() != b.data_ptr()
        assert a.is_contiguous()


def test_layers_note_their_new_sizes() -> None:
    network, inputs = build("depthwise_separable")
    groups = trace_groups(network, inputs)
    kept = {"0.0": [1, 4, 6], "2.0": [0, 3], "4.0": [5]}
    small = remove_channels(network, PruningPlan(kept, groups.sizes), inputs)
    text = str(small)
    for part in (
        *("Conv2d(3, 3, ", "BatchNorm2d(3, ", "groups=3", "Conv2d(3, 2, kernel_size=(1, 1)"),
        *("Conv2d(2, 2, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=2)",),
        *("Conv2d(2, 1,", "BatchNorm2d(1,", "Linear(in_features=1, out_features=5"),
    ):
        assert part in text, part
    network, inputs = build("group_norm")
    kept = {"0": [1, 3], "3": [0, 2, 5], "6": [1]}
    small = remove_channels(network, PruningPlan(kept, {"0": 4, "3": 6, "6": 2}), inputs)
    norms = [(small[i].num_groups, small[i].num_channels) for i in (1, 4, 7)]
    assert norms == [(2, 6), (3, 3), (1, 4)]
    network, inputs = build("transposed")
    small = remove_channels(network, PruningPlan({"1": [2]}, {"1": 3}), inputs)
    assert (small[1].in_channels, small[1].out_channels) == (8, 2)
    assert (small[4].in_channels, small[4].out_channels, small[4].groups) == (2, 2, 1)
    network = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.PReLU(6), nn.Linear(6, 2))
    small = remove_channels(network, PruningPlan({"0": [0, 5]}, {"0": 6}), torch.randn(1, 3))
    assert small[1].normalized_shape == (2,)
    assert small[2].num_parameters == 2


def test_removes_exactly_the_named_channels() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten(), nn.Linear(12, 2))
    small = remove_channels(network, PruningPlan({"0": [0, 2]}, {"0": 3}), torch.randn(1, 1, 2, 2))
    assert torch.equal(small[0].weight, network[0].weight[[0, 2]])
    assert torch.equal(small[0].bias, network[0].bias[[0, 2]])
    assert torch.equal(small[2].weight, network[2].weight[:, [0, 1, 2, 3, 8, 9, 10, 11]])
    assert torch.equal(small[2].bias, network[2].bias)


def test_a_plan_may_leave_groups_out_and_keep_all_of_others() -> None:
    network, inputs = build("plain")
    small = remove_channels(network, PruningPlan({"1.0": list(range(6))}, {"1.0": 6}), inputs)
    assert_close(run(small, inputs), run(network, inputs))
    empty = remove_channels(network, PruningPlan({}, {}), inputs)
    assert all(map(torch.equal, empty.state_dict().values(), network.state_dict().values()))


@pytest.mark.parametrize("name", ["resnet20_conv", "dense_net", "u_net", "channel_shuffle"])
def test_two_rounds_are_one(name: str) -> None:
    network, inputs = build(name)
    groups = trace_groups(network, inputs)
    first = random_plan(groups, seed=1)
    between = remove_channels(network, first, inputs)
    second = random_plan(trace_groups(between, inputs), seed=2)
    small = remove_channels(between, second, inputs)
    at_once = remove_channels(network, first.then(second), inputs)
    for key, value in at_once.state_dict().items():
        assert torch.equal(value, small.state_dict()[key])
    assert cost(at_once, inputs) == second.cost == first.then(second).cost


def test_a_norm_over_channels_is_cut_though_its_statistics_change() -> None:
    network = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    x = torch.randn(3, 4)
    small = remove_channels(network, PruningPlan({"0": [1, 2, 5]}, {"0": 6}), x)
    hidden = F.layer_norm(network[0](x)[:, [1, 2, 5]], (3,))
    torch.testing.assert_close(
        small(x), network[2].weight[:, [1, 2, 5]] @ hidden.mT, msg=""
    ) if False else torch.testing.assert_close(
        small(x), F.linear(hidden, network[2].weight[:, [1, 2, 5]], network[2].bias)
    )


def test_works_in_half_precision() -> None:
    network, inputs = build("residual")
    network, inputs = network.bfloat16(), inputs.bfloat16()
    groups = trace_groups(network, inputs)
    small = remove_channels(network, random_plan(groups), inputs)
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}


# what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (PruningPlan({"conv9": [0]}, {"conv9": 8}), "conv9: the plan is for another network"),
        (PruningPlan({"0.0": [0]}, {"0.0": 7}), r"0\.0: the plan expects 7 channels, .* has 8"),
    ],
)
def test_refuses_the_plan_of_another_network(plan: PruningPlan, message: str) -> None:
    network, inputs = build("plain")
    with pytest.raises(PlanError, match=message):
        remove_channels(network, plan, inputs)


def written_sizes(view: Callable[[Tensor], Tensor]) -> nn.Module:
    def forward(self, x):
        return self.c(self.b(view(F.relu(self.a(x)))))

    return Forward(forward, a=conv(3, 8), b=conv(8, 8), c=conv(8, 2))


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (lambda x: x.view(-1, 4, 2, 4, 4).view(-1, 8, 4, 4), "does not run"),
        (lambda x: x.reshape(2, 8, 4, 4), "does not run"),
        # Runs, but shuffles other channels than before.
        (
            lambda x: x.view(2, x.shape[1] // 2, 2, 4, 4).transpose(1, 2).reshape_as(x),
            "does not compute what it computes with these channels set to zero",
        ),
    ],
)
def test_names_the_group_whose_size_is_written_into_the_forward(view, message: str) -> None:
    network = written_sizes(view)
    inputs = torch.randn(2, 3, 4, 4)
    before = copy.deepcopy(network.state_dict())
    groups = trace_groups(network, inputs)
    kept = {"a": [0, *range(2, groups["a"].size)], "b": [0, 3]}
    with pytest.raises(PlanError, match=f"Forward: .* {message}.* Keep all channels of a, for ex"):
        remove_channels(network, PruningPlan(kept, groups.sizes), inputs)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    fine = remove_channels(network, PruningPlan({"b": [0, 3]}, {"b": 8}), inputs)
    assert fine.b.out_channels == 2


def test_refuses_a_network_whose_output_changes_shape() -> None:
    def forward(self, x):
        x = self.a(x)
        return self.b(x), torch.zeros(x.shape[1])

    network = Forward(forward, a=nn.Linear(3, 6), b=nn.Linear(6, 2))
    with pytest.raises(PlanError, match=r"puts out \[\(1, 2\), \(4,\)\] instead of .*\(6,\)"):
        remove_channels(network, PruningPlan({"a": [0, 1, 2, 3]}, {"a": 6}), torch.randn(1, 3))


# the same as another tool ------------------------------------------------------------------------


# Without what torch-pruning gets wrong: depth multipliers, padded shortcuts, shuffled channels.
CROSS_CHECKED = (
    *("plain", "residual", "preactivation", "concatenation", "dense_net", "depthwise_separable"),
    *("squeeze_excitation", "chunk", "flatten", "one_dimensional", "mobilenet_v3_small"),
    *("sigmoid", "many_inputs", "u_net", "lenet5", "vgg16", "resnet20_conv", "wrn", "resnet18"),
)


@pytest.mark.parametrize("name", CROSS_CHECKED)
def test_removes_the_same_entries_as_torch_pruning(name: str) -> None:
    tp = pytest.importorskip("torch_pruning")
    network, inputs = build(name)
    network.eval()
    groups = trace_groups(network, inputs)
    generator = torch.Generator().manual_seed(0)
    chosen = list(groups) if len(groups) < 6 else list(groups)[:: len(groups) // 4]
    for group, number in zip(chosen, [1, 3, 2] * len(chosen), strict=False):
        size = groups[group].size
        gone = sorted(torch.randperm(size, generator=generator)[: min(number, size - 1)].tolist())
        plan = PruningPlan({group: [i for i in range(size) if i not in gone]}, {group: size})
        small = remove_channels(network, plan, inputs)
        theirs = copy.deepcopy(network)
        graph = tp.DependencyGraph().build_dependency(theirs, inputs)
        layer = theirs.get_submodule(group)
        units = next(s.units for s in groups[group].slices if s.role == "producer")
        index = [i for i, unit in enumerate(units.tolist()) if unit in gone]
        cut = (
            tp.prune_linear_out_channels
            if isinstance(layer, nn.Linear)
            else tp.prune_conv_out_channels
        )
        graph.get_pruning_group(layer, cut, idxs=index).prune()
        ours = small.state_dict()
        assert {k: v.shape for k, v in ours.items()} == {
            k: v.shape for k, v in theirs.state_dict().items()
        }, group
        assert all(torch.equal(ours[k], v) for k, v in theirs.state_dict().items()), group


def test_networks_that_need_an_ignore_are_cut_with_their_groups() -> None:
    def forward(self, x):
        return self.b(self.block(F.relu(self.e(F.relu(self.a(x))))))

    def block(self, x):
        return self.c(x) if x.mean() > -99 else self.d(x)

    inner = Forward(block, c=nn.Linear(5, 5), d=nn.Linear(5, 5))
    network = Forward(forward, a=nn.Linear(4, 6), e=nn.Linear(6, 5), block=inner, b=nn.Linear(5, 2))
    x = torch.randn(3, 4)
    groups = trace_groups(network, x, ["block"])
    plan = PruningPlan({"a": [0, 2, 5]}, groups.sizes)
    with pytest.raises(TraceError, match="block: calls bool"):
        remove_channels(network, plan, x)
    small = remove_channels(network, plan, x, groups=groups)
    masked = GatedNetwork(network, groups).eval()(x, plan.masks())
    torch.testing.assert_close(small(x), masked)
    # What the block reads is whole, so that its other way works as well.
    assert small.block.d(torch.randn(1, 5)).shape == (1, 5)


def test_a_group_that_ignore_froze_is_not_found_again() -> None:
    network, x = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)), torch.randn(3, 4)
    groups = trace_groups(network, x, ["0"])
    plan = PruningPlan({"1": [0, 4]}, {"1": 5})
    assert remove_channels(network, plan, x, groups=groups)[0].out_features == 6
    with pytest.raises(PlanError, match="0: the plan is for another network; groups here: 1"):
        remove_channels(network, PruningPlan({"0": [0]}, {"0": 6}), x, groups=groups)
    other = nn.Sequential(nn.Linear(4, 7), nn.Linear(7, 5), nn.Linear(5, 2))
    with pytest.raises(
        PlanError, match=r"0\.weight: the groups are of another network: .* got \(7, 4\)"
    ):
        remove_channels(other, plan, x, groups=groups)
    with pytest.raises(PlanError, match=r"(0.weight|1.weight): .* got"):
        remove_channels(nn.Sequential(nn.Linear(4, 7)), plan, x, groups=groups)


def test_a_layer_that_would_lose_all_its_channels_is_named():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3)
            self.norm = nn.GroupNorm(3, 12)  # its groups are the units; the second is of both
            self.last = nn.Conv2d(12, 2, 1)

        def forward(self, x):
            return self.last(self.norm(torch.cat([self.left(x), self.right(x)], 1)))

    network, example = Branches(), torch.randn(1, 3, 8, 8)
    groups = trace_groups(network, example)
    (name,) = groups
    plan = PruningPlan({name: [2]}, groups.sizes)
    with pytest.raises(PlanError, match="of left no channel would be left; keep a unit of each"):
        remove_channels(network, plan, example)
