"""The CIFAR ResNets: 6n + 2 layers in three stages of 16, 32 and 64 channels."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayesprune.errors import ConfigError
from bayesprune.models._common import checked_widths, he_init

_STAGE_WIDTHS = (16, 32, 64)


class ResNet(nn.Module):
    """Residual network for 32x32 images.

    ResNet-56 with `shortcut="pad"` has 125.49M multiply-accumulates and 0.849M weights.

    Parameters
    ----------
    depth : int
        6n + 2 for n >= 1 blocks per stage: 20, 32, 56, ...
    shortcut : {"pad", "conv"}
        How a shortcut changes shape between stages: "pad" subsamples and appends channels of
        zeros (option A of the paper), "conv" is a 1x1 convolution with batch normalization.
    inner_widths : sequence of int, optional
        Output channels of `conv1` of each of the 3n blocks. Default: the width of its stage.
    num_classes : int
        Number of logits.

    Raises
    ------
    ConfigError
        If `depth` is not 6n + 2, `shortcut` is unknown, or `inner_widths` is not one positive
        integer per block.

    References
    ----------
    He, Zhang, Ren & Sun, CVPR 2016, section 4.2.
    """

    def __init__(
        self,
        depth: int = 56,
        shortcut: Literal["pad", "conv"] = "pad",
        inner_widths: Sequence[int] | None = None,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if blocks < 1 or rest:
            raise ConfigError(f"ResNet.depth: expected 6n + 2 with n >= 1, got {depth}")
        if shortcut not in ("pad", "conv"):
            raise ConfigError(f"ResNet.shortcut: expected 'pad' or 'conv', got {shortcut!r}")
        if inner_widths is None:
            inner_widths = [width for width in _STAGE_WIDTHS for _ in range(blocks)]
        inner = iter(checked_widths("ResNet.inner_widths", inner_widths, 3 * blocks))

        channels = _STAGE_WIDTHS[0]
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        layers = []
        for width in _STAGE_WIDTHS:
            layer = nn.Sequential()
            for _ in range(blocks):
                layer.append(_Block(channels, next(inner), width, shortcut))
                channels = width
            layers.append(layer)
        self.layer1, self.layer2, self.layer3 = layers
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images, shape (N, 3, 32, 32), to logits, shape (N, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.pool(x), 1))


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; strided when the number of channels changes."""

    def __init__(self, in_channels: int, inner: int, out_channels: int, shortcut: str) -> None:
        super().__init__()
        self.stride = 1 if in_channels == out_channels else 2
        self.conv1 = nn.Conv2d(in_channels, inner, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = None
        if shortcut == "conv" and self.stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=self.stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.stride > 1:
            # All zeros go behind and their number is read off `out`, so that the channels still
            # line up after some have been removed on both sides.
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, 0, out.shape[1] - x.shape[1]))
        return F.relu(out + x)
