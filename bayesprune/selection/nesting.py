"""Choices of units where some are within others: nothing stays that no layer reads."""

from __future__ import annotations

import math

from bayesprune.plan import Kept
from bayesprune.selection.context import Context
from bayesprune.selection.scores import ChannelScores


def settled(kept: Kept, scores: ChannelScores, context: Context) -> Kept:
    """Without features of channels that leave, nor channels that have no feature left.

    Limits hold all the same: what they need besides, the best first, brings along the channel or
    the feature through which it is read.
    """
    groups = context.groups
    nested = [name for name in groups.nested if name in kept]
    if not nested:
        return kept
    kept = {name: list(units) for name, units in kept.items()}
    for name in nested:
        read = groups.read(name, kept)
        kept[name] = [unit for unit in kept[name] if unit in read]

    while short := [name for name in nested if len(kept[name]) < _fewest(name, kept, context)]:
        for name in short:
            _top_up(name, kept, scores, context)
    return kept


def _fewest(name: str, kept: Kept, context: Context) -> int:
    """How many units a group must keep at least."""
    return context.fit(name, max(1, len(kept[name])))


def _top_up(name: str, kept: Kept, scores: ChannelScores, context: Context) -> None:
    """Add units to a group until it has an allowed number of them, and what they are read through.

    Units for which nothing else has to come back are the first, then the best.
    """
    ways = []
    for unit in reversed(scores.order(name)):
        if unit not in kept[name]:
            way = _way(name, unit, scores, context)
            ways.append({g: own for g, own in way.items() if g in kept and own not in kept[g]})
    width = _fewest(name, kept, context)
    for way in sorted(ways, key=len)[: width - len(kept[name])]:
        for other, own in way.items():
            kept[other] = sorted({*kept[other], own})


def _way(name: str, unit: int, scores: ChannelScores, context: Context) -> dict[str, int]:
    """A unit, and the units of other groups through which its best entry is read."""
    best, found = -math.inf, {name: unit}
    for units, others in context.groups.readings(name):
        for entry in (units == unit).nonzero()[:, 0].tolist():
            way = {other: int(owned[entry]) for other, owned in others.items() if owned[entry] >= 0}
            score = sum(
                float(scores.values[g][own]) for g, own in way.items() if g in scores.values
            )
            if score > best:
                best, found = score, {name: unit, **way}
    return found
