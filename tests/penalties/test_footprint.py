"""Bytes of parameters and activations."""

import torch

from bayesprune import models
from bayesprune.penalties import Footprint, footprint


def test_lenet_300_100() -> None:
    network = models.create("lenet300_100").train()
    parameters = 266_200 + 410
    activations = 784 + 2 * 300 + 2 * 100 + 10  # selected pixels, linear layers and ReLUs
    expected = Footprint(cmf=4 * (parameters + activations), mms=4 * parameters)
    for batch in (1, 3):
        assert footprint(network, torch.zeros(batch, 1, 28, 28)) == expected
    assert network.training
    assert not any(module._forward_hooks for module in network.modules())
