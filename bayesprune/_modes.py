"""Modes, random numbers and kinds of attention for a while; then all is as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def in_mode(network: nn.Module, *, training: bool) -> Iterator[None]:
    """Training or evaluation mode; afterwards each module is in its own again."""
    modes = {module: module.training for module in network.modules()}
    network.train(training)
    try:
        yield
    finally:
        for module, own in modes.items():
            module.training = own


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; modes and random number generators are restored."""
    devices = {p.device.index for p in network.parameters() if p.is_cuda}
    with in_mode(network, training=False), torch.no_grad(), torch.random.fork_rng(devices):
        yield


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers of `device` from `seed`; outside, its generators are as they were."""
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:  # torch.manual_seed would change the generators of all others as well
            torch.cuda.default_generators[gpu.index].manual_seed(seed)
        yield


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
