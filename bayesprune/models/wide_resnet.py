"""Wide residual networks for 32x32 images."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayesprune.errors import ConfigError
from bayesprune.models._common import checked_widths, he_init


class WideResNet(nn.Module):
    """Pre-activation residual network, `width` times wider than the CIFAR ResNet.

    The stride is in the first convolution of a stage. WRN-28-10 has 5.243G multiply-accumulates
    and 36.46M weights.

    Parameters
    ----------
    depth : int
        6n + 4 for n >= 1 blocks per stage: 16, 28, 40, ...
    width : int
        Widening factor k >= 1; the stages have 16k, 32k and 64k channels.
    inner_widths : sequence of int, optional
        Output channels of `conv1` of each of the 3n blocks. Default: the width of its stage.
    num_classes : int
        Number of logits.

    Raises
    ------
    ConfigError
        If `depth` is not 6n + 4, `width` is below 1, or `inner_widths` is not one positive integer
        per block.

    References
    ----------
    Zagoruyko & Komodakis, BMVC 2016.
    """

    def __init__(
        self,
        depth: int = 28,
        width: int = 10,
        inner_widths: Sequence[int] | None = None,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if blocks < 1 or rest:
            raise ConfigError(f"WideResNet.depth: expected 6n + 4 with n >= 1, got {depth}")
        if width < 1:
            raise ConfigError(f"WideResNet.width: expected at least 1, got {width}")
        stage_widths = (16 * width, 32 * width, 64 * width)
        if inner_widths is None:
            inner_widths = [w for w in stage_widths for _ in range(blocks)]
        inner = iter(checked_widths("WideResNet.inner_widths", inner_widths, 3 * blocks))

        channels = 16
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        layers = []
        for out_channels in stage_widths:
            layer = nn.Sequential()
            for block in range(blocks):
                stride = 2 if layers and block == 0 else 1
                layer.append(_PreActivationBlock(channels, next(inner), out_channels, stride))
                channels = out_channels
            layers.append(layer)
        self.layer1, self.layer2, self.layer3 = layers
        self.bn = nn.BatchNorm2d(channels)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images, shape (N, 3, 32, 32), to logits, shape (N, num_classes)."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = F.relu(self.bn(x))
        return self.fc(torch.flatten(self.pool(x), 1))


class _PreActivationBlock(nn.Module):
    """Two 3x3 convolutions, each after batch normalization and ReLU, and a shortcut."""

    def __init__(self, in_channels: int, inner: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, inner, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, out_channels, 3, padding=1, bias=False)
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))
