"""A small convolutional network for scikit-learn's 8x8 digits: seconds to train on a CPU."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bayesprune.models._common import checked_widths, he_init


class DigitsNet(nn.Module):
    """Three 3x3 convolutions with batch normalization and ReLU, two poolings, one hidden layer.

    Wider than 8x8 digits need, so that pruning has something to find.

    Parameters
    ----------
    widths : sequence of 4 int
        Output channels of `conv1`, `conv2` and `conv3`, output units of `fc1`.
    num_classes : int
        Number of logits.

    Raises
    ------
    ConfigError
        If `widths` is not 4 positive integers.
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 64, 64), num_classes: int = 10) -> None:
        super().__init__()
        first, second, third, hidden = checked_widths("DigitsNet.widths", widths, 4)
        self.conv1 = nn.Conv2d(1, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(first, second, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(second)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.conv3 = nn.Conv2d(second, third, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(third)
        self.relu3 = nn.ReLU()
        self.pool3 = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(2 * 2 * third, hidden)
        self.relu4 = nn.ReLU()
        self.fc2 = nn.Linear(hidden, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images, shape (N, 1, 8, 8), to logits, shape (N, num_classes)."""
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.pool2(self.relu2(self.bn2(self.conv2(x))))
        x = self.pool3(self.relu3(self.bn3(self.conv3(x))))
        return self.fc2(self.relu4(self.fc1(torch.flatten(x, 1))))
