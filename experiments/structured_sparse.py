"""Networks of structured sparse convolutions as models of a run.

With this folder on the Python path, a config names them by import path::

    PYTHONPATH=experiments bayesprune run experiments/resnet32_cifar10_structured_sparse.yaml
"""

from __future__ import annotations

from torch import nn

from bayesprune import models
from bayesprune.layers import to_structured_sparse


def network(name: str, p: int, g: int, **settings: object) -> nn.Module:
    """A network of the package by its name, with fresh structured sparse convolutions.

    Parameters
    ----------
    name : str
        As in `bayesprune.models.names`.
    p, g : int
        See `bayesprune.layers.StructuredSparseConv2d`.
    **settings
        Of the network.
    """
    return to_structured_sparse(models.create(name, **settings), p, g)
