"""From the evidence of any method to a pruning plan."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from bayesprune.errors import ConfigError, PlanError
from bayesprune.groups import ChannelGroups
from bayesprune.losses import Loss
from bayesprune.plan import Limits, PruningPlan
from bayesprune.selection.context import Context
from bayesprune.selection.nesting import settled
from bayesprune.selection.rules import Rule
from bayesprune.selection.scores import ChannelScores


def select(
    evidence: Any,
    rule: Rule | None = None,
    *,
    groups: ChannelGroups,
    network: nn.Module | None = None,
    loader: Iterable[Any] | None = None,
    example_input: Tensor | tuple[Any, ...] | None = None,
    examples: int = 2048,
    loss: Loss | None = None,
    minimum: int | dict[str, int] = 1,
    round_to: int = 1,
    protect: Iterable[str] = (),
    progress: bool = True,
) -> PruningPlan:
    """Choose which channels stay.

    Parameters
    ----------
    evidence : ChannelScores or SwitchPosterior
        From any method; of a posterior the rule takes the scores it needs.
    rule : Rule, optional
        `TopK`, `KeepFraction`, `Threshold`, `Probability`, `FamilyRule`, `EvidenceStop`,
        `RiskBudget`, `Budget` or `GlobalRank`. A posterior's own by default: `EvidenceStop` where
        it is in closed form, else `FamilyRule`.
    groups : ChannelGroups
    network, loader : optional
        The network that the channels are cut from, and held-out batches ``(inputs, targets)``: with
        both, `Budget` is shared out by measured loss.
    example_input : Tensor or tuple, optional
        With `network`: what ``Budget(latency_ms=…)`` times it on, on the network's device. The
        whole batch is timed.
    examples : int
        How many held-out examples to measure on.
    loss : callable, optional
        What is measured: ``(output, targets)`` to the mean loss of a batch, a scalar tensor;
        cross-entropy by default.
    minimum : int or dict of str to int
        Fewest channels, >= 1, of every group or of the groups named: the best stay even if the rule
        would remove them.
    round_to : int
        Groups that lose channels keep a multiple of this, >= 1, where they have as many. No budget
        is exceeded for it; the numbers of other rules are rounded up.
    protect : iterable of str
        Groups that stay whole.
    progress : bool
        Whether a choice by held-out loss that takes over two seconds shows how far it has come, on
        stderr.

    Returns
    -------
    PruningPlan
        With its predicted cost, and a note if a budget is not used up.

    Raises
    ------
    PlanError
        If the evidence is something else or does not fit the groups, `minimum` or `protect` names
        an unknown group, only one of `network` and what it is measured on is given, or a network
        for latency does not run.
    BudgetError
        If a budget cannot be met.
    ConfigError
        If `minimum` or `round_to` is below 1.
    DataError
        If the held-out data is empty or gives a loss that is not finite or cannot be computed.

    Examples
    --------
    >>> import torch
    >>> import bayesprune as bp
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> groups = bp.trace_groups(network, torch.zeros(1, 4))
    >>> scores = bp.ChannelScores({"0": torch.tensor([5.0, 0.0, 4.0, 1.0, 3.0, 2.0])}, "example")
    >>> bp.select(scores, bp.KeepFraction(0.5), groups=groups).kept
    {'0': [0, 2, 4]}
    >>> bp.select(scores, bp.Threshold(2.0), groups=groups).kept
    {'0': [0, 2, 4, 5]}
    """
    limits = Limits(minimum, round_to, list(protect))
    limits.check(groups)
    if (network is None) != (loader is None and example_input is None):
        raise PlanError(
            "select: give network together with loader (for held-out loss), example_input (for "
            "latency) or both"
        )
    context = Context(
        groups,
        limits,
        network=network,
        example_input=example_input,
        loader=loader,
        examples=examples,
        loss_function=loss,
        progress=progress,
    )
    return choose(evidence, rule, context)


def choose(evidence: Any, rule: Rule | None, context: Context) -> PruningPlan:
    """`select` within a context that outlives one choice, so that latency is measured once."""
    groups = context.groups
    _check_evidence(evidence)
    if rule is None:
        if isinstance(evidence, ChannelScores):
            raise ConfigError("select: scores alone do not say how many channels stay; give a rule")
        rule = evidence.default_rule()
    if not isinstance(rule, Rule):
        raise PlanError(f"select: expected a rule like Budget(macs=0.5), got {rule!r}")
    scores = evidence if isinstance(evidence, ChannelScores) else evidence.scores(rule.measure)
    for name, values in scores.values.items():
        if name not in groups or groups[name].size != len(values):
            have = groups[name].size if name in groups else "no such group"
            raise PlanError(f"{name}: scores for {len(values)} channels, network has {have}")
    kept = rule.select(scores, context)
    for name, units in kept.items():
        width = context.fit(name, len(units))
        if width != len(units):
            kept[name] = scores.best(name, width)
    kept = settled(kept, scores, context)
    sizes = {name: groups[name].size for name in kept}
    note = rule.note(kept, context)
    return PruningPlan(kept, sizes, scores.measure, context.prices(kept), note)


def _check_evidence(evidence: Any) -> None:
    if isinstance(evidence, ChannelScores) or callable(getattr(evidence, "scores", None)):
        return
    raise PlanError(
        "select: expected ChannelScores or a SwitchPosterior, got "
        f"{type(evidence).__name__}; ChannelScores(values, measure) holds your own scores"
    )
