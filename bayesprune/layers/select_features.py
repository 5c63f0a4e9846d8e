"""A layer that makes the inputs of a network prunable."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bayesprune._checks import check_integer


class SelectFeatures(nn.Module):
    """Picks features of its input, at first all of them.

    `bayesprune.trace_groups` finds a unit in each feature: removing it removes an entry of `index`,
    and the weights that read it. So a network that takes pixels or columns of a table in at a
    linear layer can do with few of them, and is still called with all. Behind channels that can be
    pruned themselves, flattened feature maps say, a channel that leaves takes its features along.

    Parameters
    ----------
    features : int
        Size of dimension 1 of the input; at least 1.

    Attributes
    ----------
    index : Tensor
        Shape ``(selected,)``, integer: the features that are picked.
    inputs : Tensor
        Shape ``(features,)``, integer: 0, 1, …, the features that come in.

    Raises
    ------
    ConfigError
        If `features` is not a positive integer.
    """

    index: Tensor
    inputs: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        check_integer("SelectFeatures.features", features)
        self.register_buffer("index", torch.arange(features))
        self.register_buffer("inputs", torch.arange(features), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map shape ``(N, features, …)`` to ``(N, selected, …)``."""
        return x.index_select(1, self.index)

    def renumber(self) -> None:
        """Count anew the features that come in, after both tensors have lost entries."""
        self.index = torch.searchsorted(self.inputs, self.index)
        self.inputs = torch.arange(len(self.inputs), device=self.inputs.device)

    def extra_repr(self) -> str:
        return f"{len(self.index)} selected"
