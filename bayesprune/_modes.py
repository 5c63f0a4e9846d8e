"""Run a network for a look at it, and leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; modes and random number generators are restored."""
    modes = {module: module.training for module in network.modules()}
    devices = {p.device.index for p in network.parameters() if p.is_cuda}
    network.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def without_fused_attention() -> Iterator[None]:
    """Attention as separate operations: counters and tracers do not see into the fused one."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
