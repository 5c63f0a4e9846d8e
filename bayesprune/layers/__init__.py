"""Layers that small networks are made of where PyTorch and torchvision have none."""

from bayesprune.layers.attention import (
    MultiheadAttention,
    RelativePositionalAttention,
    WindowAttention,
    WindowAttentionV2,
)
from bayesprune.layers.select_features import SelectFeatures
from bayesprune.layers.structured_sparse_conv import (
    SparsePattern,
    StructuredSparseConv2d,
    sparse_patterns,
    to_structured_sparse,
)

__all__ = [
    "MultiheadAttention",
    "RelativePositionalAttention",
    "SelectFeatures",
    "SparsePattern",
    "StructuredSparseConv2d",
    "WindowAttention",
    "WindowAttentionV2",
    "sparse_patterns",
    "to_structured_sparse",
]
