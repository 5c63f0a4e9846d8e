"""The share that a unit has in what the next layers compute."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bayesprune._checks import check_integer
from bayesprune.criteria._criterion import Criterion
from bayesprune.criteria._units import read_activations
from bayesprune.groups import ChannelGroups, Slice
from bayesprune.selection import ChannelScores


class PFP(Criterion):
    r"""Empirical sensitivity: the largest share that the unit ever has in an output it is read for.

    :math:`s_j = \max_{x, i} (w_{ij} * a_j(x)) / \sum_k w_{ik} * a_k(x)` over examples, outputs and
    their positions, and over all layers that read the unit; positive and negative weights, and
    positive and negative activations, are taken apart, so that all terms have one sign. A unit's
    share sums over the kernel, since all of it leaves with the unit (torchprune's implementation
    takes the largest single entry of the kernel instead).

    Parameters
    ----------
    examples : int
        The first so many examples of the loader are looked at, >= 1.

    Raises
    ------
    ConfigError
        If `examples` is below 1.

    References
    ----------
    Liebenwein et al., "Provable Filter Pruning for Efficient Neural Networks", ICLR 2020.
    """

    reference = "Liebenwein et al., ICLR 2020"

    def __init__(self, examples: int = 128) -> None:
        check_integer("PFP.examples", examples)
        self.examples = examples

    def scores(
        self, network: nn.Module, groups: ChannelGroups, loader: Iterable[Any]
    ) -> ChannelScores:
        values = {name: torch.zeros(size) for name, size in groups.sizes.items()}

        def visit(name: str, slice_: Slice, layer: nn.Module, read: Tensor) -> None:
            for unit, share in enumerate(_shares(layer, read, slice_.units, groups[name].size)):
                values[name][unit] = torch.maximum(values[name][unit], share)

        read_activations(network, groups, loader, visit, "PFP", self.examples)
        return ChannelScores(values, "PFP sensitivity")


def _shares(layer: nn.Module, read: Tensor, units: Tensor, size: int) -> list[Tensor]:
    """The largest share of each unit in any output of a layer."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    dim = -1 if isinstance(layer, nn.Linear) else 1
    axis = 0 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 1
    columns = [(units == unit).nonzero()[:, 0].to(read.device) for unit in range(size)]
    shares = [torch.zeros(()) for _ in range(size)]
    for part in (read.clamp_min(0), -read.clamp_max(0)):
        if not part.any():
            continue
        for sign in (weight.clamp_min(0), -weight.clamp_max(0)):
            whole = _without_bias(layer, sign, part)
            safe = whole.masked_fill(whole <= torch.finfo(whole.dtype).eps * whole.max(), torch.inf)
            for unit, own in enumerate(columns):
                few = sign.index_select(axis, own), part.index_select(dim, own)
                share = (_without_bias(layer, *few) / safe).max().cpu()
                shares[unit] = torch.maximum(shares[unit], share)
    return shares


def _without_bias(layer: nn.Module, weight: Tensor, read: Tensor) -> Tensor:
    """What a layer puts out with another weight, that may read fewer channels, and no bias."""
    zeros = {name: torch.zeros_like(p) for name, p in layer.named_parameters() if name == "bias"}
    return functional_call(layer, {"weight": weight, **zeros}, (read,))
