"""Small networks, and data for them."""

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from bayesprune.groups import ChannelGroups, trace_groups
from bayesprune.training import FabricConfig, make_fabric


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
def network(shared_network: nn.Module) -> nn.Module:
    return shared_network


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
