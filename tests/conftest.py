"""Set-up shared by all tests: no display, one thread, and the same random numbers in any order."""

import os

# Before torch is imported, and for the processes that tests start. Workers share the cores, and
# sums over several threads depend on how many there are.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "agg"

import importlib

import pyro
import pytest


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
