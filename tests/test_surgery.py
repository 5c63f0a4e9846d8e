"""Removed = masked = folded, on a zoo of small networks; what must not change; what must fail."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bayesprune import models
from bayesprune.cost import CostModel, cost
from bayesprune.errors import PlanError
from bayesprune.gating import GatedNetwork
from bayesprune.groups import ChannelGroups, trace_groups
from bayesprune.selection import PruningPlan
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
        unit(3, 8), unit(8, 8, groups=8), unit(8, 12, 1), unit(12, 24, groups=12), unit(24, 6, 1),
        head(6),
    ), IMAGE  # fmt: skip


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
        nn.Conv3d(2, 6, 3), nn.BatchNorm3d(6), nn.ReLU(), nn.Conv3d(6, 5, 3, padding_mode="circular"),
        nn.Flatten(), nn.Linear(40, 5),
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
        forward, stem=unit(3, 8), conv1=conv(8, 6), last1=unit(14, 5), last2=unit(5, 6), head=head(6)
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

SPOILT = {"layer_norm"}


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
