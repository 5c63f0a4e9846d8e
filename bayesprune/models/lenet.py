"""The two LeNets of the pruning literature, for 28x28 grey images."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bayesprune.layers import SelectFeatures
from bayesprune.models._common import checked_widths


class LeNet300_100(nn.Module):
    """Two hidden fully connected layers with ReLU: 784-300-100-10, 266,200 weights.

    The pixels are picked by a layer `pixels`, so that they can be pruned as hidden units can.

    Parameters
    ----------
    widths : sequence of 2 int
        Sizes of the hidden layers `fc1` and `fc2`.
    num_classes : int
        Number of logits.

    Raises
    ------
    ConfigError
        If `widths` is not 2 positive integers.

    References
    ----------
    LeCun, Bottou, Bengio & Haffner, Proc. IEEE 86(11), 1998.
    """

    def __init__(self, widths: Sequence[int] = (300, 100), num_classes: int = 10) -> None:
        super().__init__()
        first, second = checked_widths("LeNet300_100.widths", widths, 2)
        self.pixels = SelectFeatures(28 * 28)
        self.fc1 = nn.Linear(28 * 28, first)
        self.relu1 = nn.ReLU()
        self.fc2 = nn.Linear(first, second)
        self.relu2 = nn.ReLU()
        self.fc3 = nn.Linear(second, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images, shape (N, 1, 28, 28), to logits, shape (N, num_classes)."""
        x = self.relu1(self.fc1(self.pixels(torch.flatten(x, 1))))
        return self.fc3(self.relu2(self.fc2(x)))


class LeNet5(nn.Module):
    """The Caffe LeNet-5: 20-50-500-10, 2,293,000 multiply-accumulates, 430,500 weights.

    Valid 5x5 convolutions, each followed by 2x2 max pooling and by no other nonlinearity; the only
    ReLU follows `fc1`.

    Parameters
    ----------
    widths : sequence of 3 int
        Output channels of `conv1` and `conv2`, output units of `fc1`.
    num_classes : int
        Number of logits.
    select_inputs : bool
        Whether a layer `inputs` picks the inputs of `fc1`, so that single ones can be pruned, not
        only whole channels of `conv2`.

    Raises
    ------
    ConfigError
        If `widths` is not 3 positive integers.

    References
    ----------
    Jia et al., "Caffe", ACM Multimedia 2014 (`examples/mnist/lenet.prototxt`).
    """

    def __init__(
        self,
        widths: Sequence[int] = (20, 50, 500),
        num_classes: int = 10,
        select_inputs: bool = False,
    ) -> None:
        super().__init__()
        first, second, hidden = checked_widths("LeNet5.widths", widths, 3)
        self.conv1 = nn.Conv2d(1, first, 5)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(first, second, 5)
        self.pool2 = nn.MaxPool2d(2)
        self.inputs = SelectFeatures(4 * 4 * second) if select_inputs else None
        self.fc1 = nn.Linear(4 * 4 * second, hidden)
        self.relu1 = nn.ReLU()
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images, shape (N, 1, 28, 28), to logits, shape (N, num_classes)."""
        x = self.pool1(self.conv1(x))
        x = self.pool2(self.conv2(x))
        x = torch.flatten(x, 1)
        if self.inputs is not None:
            x = self.inputs(x)
        return self.fc2(self.relu1(self.fc1(x)))
