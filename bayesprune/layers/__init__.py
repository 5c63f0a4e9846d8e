"""Layers that pruned networks are made of where PyTorch and torchvision have none."""

from bayesprune.layers.attention import (
    MultiheadAttention,
    RelativePositionalAttention,
    WindowAttention,
    WindowAttentionV2,
)

__all__ = [
    "MultiheadAttention",
    "RelativePositionalAttention",
    "WindowAttention",
    "WindowAttentionV2",
]
