"""Set-up shared by all tests: no display, one thread, and the same random numbers in any order."""

import os

# Before torch is imported, and for the processes that tests start. Workers share the cores, and
# sums over several threads depend on how many there are.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "agg"

import pyro
import pytest


@pytest.fixture(autouse=True)
def seed():
    """Start each test from seed 0 and an empty parameter store; wider fixtures seed themselves."""
    pyro.clear_param_store()
    pyro.enable_validation(True)  # torch.compile switches it off for the whole process
    pyro.set_rng_seed(0)
