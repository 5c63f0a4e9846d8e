"""Bits by the posterior variances of weights."""

import pytest
import torch
from torch import nn

import bayesprune as bp
from bayesprune.diagnostics import bit_precision
from bayesprune.errors import ConfigError


def switched(**arguments):
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 5), nn.ReLU(), nn.Linear(5, 3)
    )
    groups = bp.trace_groups(network, torch.randn(1, 1, 5, 5))
    switch = bp.switches.LogNormal()
    return bp.SwitchedNetwork(network, groups, switch, num_data=60, train_weights=True, **arguments)


def test_significand_by_its_definition():
    made = switched(weight_posterior=bp.GaussianWeights(init_sd=0.02))
    table = bit_precision(made)
    assert list(table["layer"]) == ["0", "3", "5"]
    weight = dict(made.network.network.named_modules())["5"].module.weight.detach().double()
    gate, sd = (getattr(made.guide.switches[1], name)().double() for name in ("mean", "sd"))
    variance = gate**2 * 0.02**2 + sd**2 * weight**2 + sd**2 * 0.02**2
    bits = [sum(2 * v < 2.0**-t for t in range(1, 24)) for v in variance.flatten().tolist()]
    assert table["significand"].iloc[2] == -(-sum(bits) // len(bits))
    assert (table["bits"] == table["significand"] + table["exponent"] + 1).all()
    assert (table["bits"] < 32).all()


def test_weights_without_a_posterior():
    with pytest.raises(ConfigError, match="bit_precision: the weights have no posterior"):
        bit_precision(switched())
