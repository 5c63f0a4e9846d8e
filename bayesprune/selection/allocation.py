"""How a cost is shared out between groups."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from typing import Protocol

import numpy as np

from bayesprune.cost import CostCurves, Price
from bayesprune.groups import ChannelGroups
from bayesprune.plan import Kept
from bayesprune.selection.context import Context
from bayesprune.selection.nesting import settled
from bayesprune.selection.progress import Descent
from bayesprune.selection.scores import ChannelScores

TOLERANCE = 0.02  # how much of a budget may be left
_EXCHANGES = 8000  # how many are looked at, about, before one is made, …
_LOSSES = 16  # … and for how many of these the loss is measured


class Allocation(Protocol):
    """Shares a cost out between groups."""

    def __call__(self, limit: float) -> Kept:
        """Units that can be had for a predicted cost, not below that of the smallest network."""
        ...

    def smallest(self) -> Kept:
        """The fewest units that are allowed."""
        ...

    def is_whole(self, kept: Kept) -> bool:
        """Whether nothing is removed."""
        ...


class ByLoss:
    """Removes units until a predicted cost is reached; remembers every loss it has evaluated."""

    def __init__(self, scores: ChannelScores, context: Context, price: Price, step: float) -> None:
        self.scores = scores
        self.context = context
        self.price = price
        self.step = step
        self.order = {name: scores.order(name) for name in scores.values}
        # For each group, the numbers of removals that are allowed, ascending from 0.
        self.allowed = {n: len(o) - context.widths(n)[::-1] for n, o in self.order.items()}
        self._set_loss()
        self._progress = context.progress

    def _set_loss(self) -> None:
        measure = self.context.loss
        self._loss = (
            (lambda removed: measure(self.kept(removed)))
            if measure
            else _score_loss(self.scores, self.order, self.context.groups)
        )
        self._known: dict[tuple[int, ...], float] = {}

    def kept(self, removed: Mapping[str, int]) -> Kept:
        kept = {name: sorted(self.order[name][count:]) for name, count in removed.items()}
        return settled(kept, self.scores, self.context)

    def smallest(self) -> Kept:
        return self.kept({name: int(counts[-1]) for name, counts in self.allowed.items()})

    def is_whole(self, kept: Kept) -> bool:
        return all(len(units) == len(self.order[name]) for name, units in kept.items())

    def loss(self, removed: Mapping[str, int]) -> float:
        key = tuple(removed.values())
        if key not in self._known:
            self._known[key] = self._loss(removed)
        return self._known[key]

    def __call__(self, limit: float) -> Kept:
        """Units that can be had for `limit`, which must not be below the smallest network."""
        curves = self.price.curves(self.order)
        removed, spent = curves.removed, self.price({})
        if spent <= limit:
            return self.kept(removed)

        with Descent(spent, limit, shown=self._progress) as descent:
            self._remove(curves, spent, limit, descent)
            curves = self._unread_first(curves)
            removed, spent = curves.removed, self.price(self._left(curves.removed))
            spent = self._fill(curves, spent, limit, descent)
            while spent < (1 - TOLERANCE) * limit:
                exchange = self._exchange(curves, spent, limit, 2, descent)
                exchange = exchange or self._exchange(curves, spent, limit, 3, descent)
                if not exchange:
                    break
                for name, count in exchange.items():
                    spent += float(curves(name, np.array([count]))[0])
                    curves.set(name, count)
                spent = self._fill(curves, spent, limit, descent)
        return self.kept(removed)

    def _remove(self, curves: CostCurves, spent: float, limit: float, descent: Descent) -> None:
        """Remove units until no more than `limit` is spent."""
        removed = curves.removed
        now = self.loss(removed)
        # Rates of one moment serve later ones as estimates, renewed only for the group whose turn
        # it seems to be: as good as measuring all groups at each step, and far fewer losses.
        queue = [(-math.inf, name) for name in self.order]
        while spent > limit and queue:
            descent.at(spent)
            aim = max(limit, spent * (1 - self.step))
            _, name = heappop(queue)
            curve = spent + curves(name)
            allowed = self.allowed[name]
            ahead = allowed[allowed > removed[name]]
            if not len(ahead) or curve[ahead[-1]] >= spent:
                continue  # nothing left to remove
            # The fewest removals that bring the cost to `aim`, but at most a quarter of the group:
            # one group in a deep network may not have that much, and none should go all at once.
            left = len(self.order[name]) - removed[name]
            quarter = int((ahead <= removed[name] + left // 4).sum()) - 1
            count = int(ahead[min(int((curve[ahead[:-1]] > aim).sum()), max(0, quarter))])
            after = self.loss({**removed, name: count})
            saved = spent - curve[count]
            # Features of removed channels cost nothing any more: they go at once.
            rate = (after - now) / saved if saved else -math.inf
            heappush(queue, (rate, name))
            if rate <= queue[0][0]:
                now, spent = after, float(curve[count])
                curves.set(name, count)

    def _left(self, removed: Mapping[str, int]) -> Kept:
        """The units that have not been removed, whether they are read or not."""
        return {name: self.order[name][count:] for name, count in removed.items()}

    def _unread_first(self, curves: CostCurves) -> CostCurves:
        """Curves for an order in which channels that have lost all their features go first."""
        removed, unread = dict(curves.removed), {}
        for name in self.context.groups.nested:
            if name in removed:
                left = self._left(removed)
                read = self.context.groups.read(name, left)
                unread[name] = [unit for unit in left[name] if unit not in read]
        if not any(unread.values()):
            return curves
        for name, units in unread.items():
            first = set(units)
            self.order[name] = units + [unit for unit in self.order[name] if unit not in first]
            allowed = self.allowed[name]
            removed[name] = int(allowed[allowed <= removed[name] + len(units)][-1])
        self._set_loss()  # numbers of removals mean other units now
        curves = self.price.curves(self.order)
        for name, count in removed.items():
            curves.set(name, count)
        return curves

    def _fill(self, curves: CostCurves, spent: float, limit: float, descent: Descent) -> float:
        """Give back what fits, the most useful group first; returns what is spent then."""
        removed = curves.removed

        def fewest(name: str) -> int:
            allowed = self.allowed[name]
            allowed = allowed[allowed <= removed[name]]
            over = int((spent + curves(name, allowed[:-1]) > limit).sum())
            return int(allowed[over])

        def loss(name: str) -> float:
            descent.filling()
            return self.loss({**removed, name: room[name]})

        room = {name: fewest(name) for name in self.order}
        useful = [name for name, count in room.items() if count < removed[name]]
        for name in sorted(useful, key=loss):
            count = fewest(name)
            spent += float(curves(name, np.array([count]))[0])
            curves.set(name, count)
        return spent

    def _exchange(
        self, curves: CostCurves, spent: float, limit: float, groups: int, descent: Descent
    ) -> dict[str, int]:
        """Removals of so many groups, near the present ones, with which more is spent; or nothing.

        Of the exchanges that use the budget, else of those that use most, the one with the least
        loss among those that change the smallest parts of the groups.
        """
        removed = curves.removed
        start = dict(removed)
        reach = int((_EXCHANGES / len(start)) ** (1 / (groups - 1)) / (2 * len(start)))
        near = {}
        for name, counts in self.allowed.items():
            place = int(np.searchsorted(counts, start[name]))
            near[name] = np.delete(counts, place)[max(0, place - reach) : place + reach]
        most, found = spent, []

        def search(cost: float, left: list[str], changed: dict[str, int]) -> None:
            nonlocal most, found
            if len(changed) < groups - 1:
                for i, name in enumerate(left):
                    counts = near[name]
                    for count, extra in zip(counts.tolist(), curves(name, counts), strict=True):
                        curves.set(name, count)
                        search(cost + float(extra), left[i + 1 :], {**changed, name: count})
                        curves.set(name, start[name])
                return
            for name in start.keys() - changed.keys():
                # All that this group can have.
                costs = cost + curves(name, self.allowed[name])
                place = int((costs > limit).sum())
                if place == len(costs) or costs[place] <= spent:
                    continue
                used = min(float(costs[place]), (1 - TOLERANCE) * limit)
                if used < most:
                    continue
                if used > most:
                    most, found = used, []
                every = {**changed, name: int(self.allowed[name][place])}
                part = sum(abs(c - start[n]) / len(self.order[n]) for n, c in every.items())
                found.append((part, every))

        search(spent, list(start), {})

        def loss(every: dict[str, int]) -> float:
            descent.filling()
            return self.loss({**start, **every})

        small = [every for _, every in sorted(found, key=lambda item: item[0])[:_LOSSES]]
        return min(small, key=loss, default={})


class ByRank:
    """Removes units in one order for all groups."""

    def __init__(self, scores: ChannelScores, context: Context, price: Price) -> None:
        self.scores = scores
        self.context = context
        self.price = price
        self.widths = {name: context.widths(name) for name in scores.values}
        ranked = sorted(
            (value, place, name)
            for name, values in scores.values.items()
            for place, value in enumerate(values.sort().values.tolist())
        )
        self.order = [name for _, _, name in ranked]  # whose lowest unit goes next

    def kept(self, removed: Mapping[str, int]) -> Kept:
        """The best units, as many of each group as allowed when so many should be gone."""
        kept = {}
        for name, widths in self.widths.items():
            allowed = widths[widths <= widths[-1] - removed.get(name, 0)]
            kept[name] = self.scores.best(name, int(allowed[-1] if len(allowed) else widths[0]))
        return settled(kept, self.scores, self.context)

    def smallest(self) -> Kept:
        return self.kept({name: int(widths[-1]) for name, widths in self.widths.items()})

    def is_whole(self, kept: Kept) -> bool:
        return all(len(units) == self.widths[name][-1] for name, units in kept.items())

    def __call__(self, limit: float) -> Kept:
        def cost(count: int) -> float:
            return self.price(self.kept(Counter(self.order[:count])))

        few = range(len(self.order) + 1)
        count = bisect_left(few, True, key=lambda count: cost(count) <= limit)
        removed, full = Counter(self.order[:count]), set()
        for name in reversed(self.order[:count]):
            back = removed - Counter([name])
            if name not in full and self.price(self.kept(back)) <= limit:
                removed = back
            else:
                full.add(name)
        return self.kept(removed)


def _score_loss(
    scores: ChannelScores, order: Mapping[str, Sequence[int]], groups: ChannelGroups
) -> Callable[[Mapping[str, int]], float]:
    """Loss without held-out data: -log of the share of score that each layer can still read."""
    losses = {}
    for name, units in order.items():
        values = scores.values[name].double().cpu()
        values = values - values.min().clamp_max(0)  # only differences matter below zero
        if not values.any():  # a tie below zero is a tie
            values = values + 1
        left = values[units].flip(0).cumsum(0).flip(0)  # after 0, 1, … removals
        readers = len(groups[name].modules("consumer"))
        shares = (left / left[0]).clamp_min(1e-12)
        losses[name] = (-readers * shares.log()).tolist()
    return lambda removed: sum(losses[name][count] for name, count in removed.items())
