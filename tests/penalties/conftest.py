"""A small network with all kinds of sharing, and data for it."""

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from bayesprune.groups import ChannelGroups, trace_groups
from bayesprune.training import FabricConfig, make_fabric


class Shared(nn.Module):
    """A residual sum, batch normalisation, a grouped convolution, a concatenation, a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv3 = nn.Conv2d(4, 4, 1)
        self.grouped = nn.Conv2d(4, 8, 1, groups=2)
        self.fc1 = nn.Linear(12 * 4, 5)
        self.fc2 = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.norm(self.conv1(x)))
        x = x + self.conv2(x)
        y = self.grouped(torch.tanh(self.conv3(x)))
        return self.fc2(torch.tanh(self.fc1(torch.cat([x, y], 1).flatten(1))))


class Branches(nn.Module):
    """Two hidden layers side by side: no weight belongs to two units."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(3, 3)
        self.right = nn.Linear(3, 2)
        self.out = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([torch.tanh(self.left(x)), torch.tanh(self.right(x))], 1))


@pytest.fixture
def network() -> nn.Module:
    network = Shared()
    nn.init.normal_(network.norm.bias)
    nn.init.normal_(network.norm.weight)
    return network


@pytest.fixture
def groups(network: nn.Module) -> ChannelGroups:
    return trace_groups(network, torch.zeros(1, 1, 2, 2))


@pytest.fixture
def data() -> TensorDataset:
    return TensorDataset(torch.randn(24, 1, 2, 2), torch.randint(3, (24,)))


@pytest.fixture
def branches() -> nn.Module:
    return Branches().double()


@pytest.fixture
def branch_groups(branches: nn.Module) -> ChannelGroups:
    return trace_groups(branches, torch.zeros(1, 3).double())


@pytest.fixture(scope="session")
def fabric() -> Fabric:
    return make_fabric(FabricConfig(accelerator="cpu"))
