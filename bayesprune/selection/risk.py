"""Decisions from probability: as many channels as can go at a stated risk."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from heapq import heappop, heappush

import torch
from torch import Tensor

from bayesprune._checks import check_integer, check_number
from bayesprune.errors import PlanError
from bayesprune.plan import Kept
from bayesprune.selection.context import Context, HeldOut
from bayesprune.selection.rules import Rule
from bayesprune.selection.scores import ChannelScores


class RiskBudget(Rule):
    """Remove all that can go with a stated probability that the loss rises by less than `delta`.

    Plans are nested: within a group the scores decide which channel goes next, between groups the
    removal that raises the held-out loss at the mean of the drawn gates least per channel. For each
    draw of the gates the rise is the held-out loss with the plan's channels at 0 minus the loss
    with all, the other gates as drawn. The largest plan whose rise is below `delta` in a share of
    at least `probability` of the draws is found by bisection: the next larger plan of the sequence
    fails.

    Needs a posterior, and ``network`` (the one that the switches were fitted to) with ``loader`` in
    `select`. What is promised is the gated network under the posterior, before fine-tuning, on
    these held-out examples.

    Parameters
    ----------
    delta : float
        In units of the loss, by default nats per example; above 0.
    probability : float
        In (0, 1).
    num_draws : int
        Draws of the gates, at least 1: a probability of 0.95 is known to 0.02 from 100.
    step : float
        Fraction of a group's remaining channels, in (0, 1), that goes between two plans; at least
        one channel.

    Raises
    ------
    ConfigError
        If an argument is out of range.
    PlanError
        On use, without posterior, network or held-out data.
    """

    def __init__(
        self, delta: float, probability: float = 0.95, num_draws: int = 100, step: float = 0.05
    ) -> None:
        check_number("RiskBudget.delta", delta, above=0)
        check_number("RiskBudget.probability", probability, above=0, below=1)
        check_integer("RiskBudget.num_draws", num_draws)
        check_number("RiskBudget.step", step, above=0, below=1)
        self.delta = delta
        self.probability = probability
        self.num_draws = num_draws
        self.step = step
        self.measure = f"draws:{num_draws}"

    def select(self, scores: ChannelScores, context: Context) -> Kept:
        if scores.draws is None:
            raise PlanError(
                "RiskBudget: expected posterior draws of the gates, got scores measuring "
                f"{scores.measure!r}; give select the posterior itself"
            )
        if context.loss is None:
            raise PlanError(
                "RiskBudget: the rise of the loss is measured; expected network and loader"
            )
        loss = context.loss
        plans = nested_plans(scores, context, loss, self.step)
        before = loss_draws(loss, plans[0], scores.draws)

        def fails(index: int) -> bool:
            rises = loss_draws(loss, plans[index], scores.draws or {}) - before
            return (rises < self.delta).double().mean().item() < self.probability

        return plans[bisect_left(range(1, len(plans)), True, key=fails)]


def loss_draws(loss: HeldOut, kept: Kept, draws: Mapping[str, Tensor]) -> Tensor:
    """Held-out loss with the units `kept` at each draw of the gates, shape ``(D,)``."""
    number = len(next(iter(draws.values())))
    each = [loss(kept, {name: gates[i] for name, gates in draws.items()}) for i in range(number)]
    return torch.tensor(each, dtype=torch.double)


def nested_plans(scores: ChannelScores, context: Context, loss: HeldOut, step: float) -> list[Kept]:
    """Plans from the whole network to the smallest that the limits allow, each within the last."""
    order = {name: scores.order(name) for name in scores.values}
    allowed = {name: len(o) - context.widths(name)[::-1] for name, o in order.items()}
    mean = {name: gates.mean(0) for name, gates in (scores.draws or {}).items()}
    removed = dict.fromkeys(order, 0)

    def kept(counts: Mapping[str, int]) -> Kept:
        return {name: sorted(order[name][count:]) for name, count in counts.items()}

    plans = [kept(removed)]
    now = loss(plans[0], mean)
    # As in `Budget`: rates of earlier plans are estimates, renewed for the group whose turn it is.
    queue = [(-math.inf, name) for name in order]
    while queue:
        _, name = heappop(queue)
        ahead = allowed[name][allowed[name] > removed[name]]
        if not len(ahead):
            continue
        most = removed[name] + max(1.0, step * (len(order[name]) - removed[name]))
        count = int(ahead[max(0, int((ahead <= most).sum()) - 1)])
        after = loss(kept({**removed, name: count}), mean)
        rate = (after - now) / (count - removed[name])
        heappush(queue, (rate, name))
        if rate <= queue[0][0]:
            now, removed[name] = after, count
            plans.append(kept(removed))
    return plans
