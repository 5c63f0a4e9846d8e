"""Random scores: the control of every ranking."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from bayesprune.criteria._criterion import Criterion
from bayesprune.groups import ChannelGroups
from bayesprune.selection import ChannelScores


class Random(Criterion):
    """Independent uniform scores.

    Parameters
    ----------
    seed : int
    """

    reference = "control"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def scores(
        self, network: nn.Module, groups: ChannelGroups, loader: Iterable[Any]
    ) -> ChannelScores:
        groups.check(network)
        generator = torch.Generator().manual_seed(self.seed)
        values = {n: torch.rand(size, generator=generator) for n, size in groups.sizes.items()}
        return ChannelScores(values, "random")
