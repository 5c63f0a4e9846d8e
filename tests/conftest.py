"""Set-up shared by all tests: no display, one thread, and the same random numbers in any order."""

import os

# Before torch is imported, and for the processes that tests start. Workers share the cores, and
# sums over several threads depend on how many there are.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "agg"

import importlib

import pyro
import pytest
import torch
from torch import Tensor, nn


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


def pytest_addoption(parser):
    """Let a user run the contract of switches over a class of their own."""
    parser.addoption(
        "--switch",
        metavar="MODULE.CLASS",
        type=imported,
        action="append",
        help="run the contract test of switches over this class instead of the built-in families",
    )


def imported(path):
    """What an import path names."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.fixture(autouse=True)
def seed():
    """Start each test from seed 0 and an empty parameter store; wider fixtures seed themselves."""
    pyro.clear_param_store()
    pyro.enable_validation(True)  # torch.compile switches it off for the whole process
    pyro.set_rng_seed(0)


@pytest.fixture
def shared_network() -> nn.Module:
    """A small network with all kinds of sharing, for images of shape (1, 2, 2) and 3 classes."""
    network = Shared()
    nn.init.normal_(network.norm.weight)
    nn.init.normal_(network.norm.bias)
    return network
