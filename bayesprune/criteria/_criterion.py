"""The abstract criterion."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from torch import nn

from bayesprune.groups import ChannelGroups
from bayesprune.selection import ChannelScores


class Criterion(ABC):
    """Abstract: scores channels of a trained network in one go, without training anything."""

    reference: str

    @abstractmethod
    def scores(
        self, network: nn.Module, groups: ChannelGroups, loader: Iterable[Any]
    ) -> ChannelScores:
        """Score every unit, higher = keep; shape ``(C,)`` per group.

        Parameters
        ----------
        network : nn.Module
            Left untouched.
        groups : ChannelGroups
            From `trace_groups` of the same network.
        loader : iterable
            Batches ``(inputs, targets)``, for criteria that look at data.

        Raises
        ------
        PlanError
            If the groups do not fit the network, see `ChannelGroups.check`.
        DataError
            If a criterion that looks at data finds none, or something else.
        """
