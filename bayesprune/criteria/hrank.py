"""The rank of a unit's feature map."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bayesprune._checks import check_integer
from bayesprune.criteria._criterion import Criterion
from bayesprune.criteria._units import read_activations, split_units
from bayesprune.groups import ChannelGroups, Slice
from bayesprune.selection import ChannelScores


class HRank(Criterion):
    """The mean rank of the unit's feature map, as a matrix, over images.

    Maps are taken where they are read, and the mean is over all layers that read them. A linear
    layer reads a map flattened; it is taken as a matrix as near to a square as its size allows. The
    map of a unit that is one number per image has rank 1, or 0 where the number is 0.

    Parameters
    ----------
    images : int
        The first so many images of the loader are looked at, >= 1.

    Raises
    ------
    ConfigError
        If `images` is below 1.

    References
    ----------
    Lin et al., "HRank: Filter Pruning using High-Rank Feature Map", CVPR 2020.
    """

    reference = "Lin et al., CVPR 2020"

    def __init__(self, images: int = 500) -> None:
        check_integer("HRank.images", images)
        self.images = images

    def scores(
        self, network: nn.Module, groups: ChannelGroups, loader: Iterable[Any]
    ) -> ChannelScores:
        total = {name: torch.zeros(size) for name, size in groups.sizes.items()}
        count = dict.fromkeys(groups, 0)

        def visit(name: str, slice_: Slice, layer: nn.Module, read: Tensor) -> None:
            maps = _maps(layer, read, slice_.units, groups[name].size)
            ranks = torch.linalg.matrix_rank(maps).float().cpu()
            total[name] += ranks.reshape(*ranks.shape[:2], -1).mean(2).sum(0)
            count[name] += len(maps)

        read_activations(network, groups, loader, visit, "HRank", self.images)
        return ChannelScores({name: t / count[name] for name, t in total.items()}, "HRank")


def _maps(layer: nn.Module, read: Tensor, units: Tensor, size: int) -> Tensor:
    """The feature maps in what a layer reads, shape ``(N, C, …, height, width)``."""
    if not isinstance(layer, nn.Linear):
        maps = split_units(read, units, size)
        return maps if maps.ndim > 4 else maps[..., None, :]
    maps = split_units(read.movedim(-1, 1), units, size)
    if maps.ndim > 3:  # positions by what each has of the unit
        return maps.flatten(3).transpose(2, 3)
    length = maps.shape[2]
    height = max(n for n in range(1, int(length**0.5) + 1) if length % n == 0)
    return maps.unflatten(2, (height, length // height))
