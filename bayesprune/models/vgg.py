"""VGG with batch normalization for 32x32 images."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bayesprune.errors import ConfigError
from bayesprune.models._common import checked_widths, he_init

_CONVS_PER_STAGE = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_STAGE_WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """3x3 convolutions with batch normalization in five stages, FC-512, FC-`num_classes`.

    VGG-16 has 13 convolutions, 313.5M multiply-accumulates and 14.98M weights; VGG-19 has 16
    convolutions. Convolution j of stage i is `features.conv{i}_{j}`.

    Parameters
    ----------
    depth : {16, 19}
        Weight layers in the ImageNet original; the form for CIFAR has one fewer.
    widths : sequence of int, optional
        Output channels of each convolution, then output units of `fc1`: 14 numbers for depth 16,
        17 for depth 19. Default: 64, 128, 256, 512, 512 per stage and 512.
    num_classes : int
        Number of logits.

    Raises
    ------
    ConfigError
        If `depth` is not 16 or 19, or `widths` is not one positive integer per layer.

    References
    ----------
    Simonyan & Zisserman, ICLR 2015; with batch normalization for CIFAR as in Li et al., ICLR 2017.
    """

    def __init__(
        self, depth: int = 16, widths: Sequence[int] | None = None, num_classes: int = 10
    ) -> None:
        super().__init__()
        if depth not in _CONVS_PER_STAGE:
            raise ConfigError(f"VGG.depth: expected 16 or 19, got {depth}")
        stages = _CONVS_PER_STAGE[depth]
        if widths is None:
            widths = [w for w, n in zip(_STAGE_WIDTHS, stages, strict=True) for _ in range(n)]
            widths += [512]
        *conv_widths, hidden = checked_widths("VGG.widths", widths, sum(stages) + 1)

        self.features = nn.Sequential()
        outputs = iter(conv_widths)
        channels = 3
        for i, count in enumerate(stages, start=1):
            for j in range(1, count + 1):
                width = next(outputs)
                conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
                self.features.add_module(f"conv{i}_{j}", conv)
                self.features.add_module(f"bn{i}_{j}", nn.BatchNorm2d(width))
                self.features.add_module(f"relu{i}_{j}", nn.ReLU())
                channels = width
            self.features.add_module(f"pool{i}", nn.MaxPool2d(2))
        self.fc1 = nn.Linear(channels, hidden)
        self.relu1 = nn.ReLU()
        self.fc2 = nn.Linear(hidden, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images, shape (N, 3, 32, 32), to logits, shape (N, num_classes)."""
        x = torch.flatten(self.features(x), 1)
        return self.fc2(self.relu1(self.fc1(x)))
