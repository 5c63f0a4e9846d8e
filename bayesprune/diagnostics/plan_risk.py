"""What a plan will cost, over the posterior: its loss, the rise, and the regret."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from bayesprune._checks import check_integer
from bayesprune.batches import Loader
from bayesprune.diagnostics._diagnostic import Diagnostic
from bayesprune.errors import PlanError
from bayesprune.groups import ChannelGroups
from bayesprune.losses import Loss
from bayesprune.plan import PruningPlan
from bayesprune.posterior import SwitchPosterior
from bayesprune.selection import HeldOut, loss_draws


@dataclass(frozen=True, repr=False, eq=False)
class PlanRisk(Diagnostic):
    """Held-out losses of a plan under posterior draws of the gates, each of shape ``(D,)``.

    Attributes
    ----------
    loss : Tensor
        With the plan's channels at 0 and the others as drawn, mean per example.
    whole : Tensor
        With all channels as drawn.
    best : Tensor
        Of the plan with the same numbers of channels that keeps those with the largest gates of the
        draw, in absolute value.
    """

    loss: Tensor
    whole: Tensor
    best: Tensor

    @property
    def rise(self) -> Tensor:
        """How much the plan raises the loss in each draw, shape ``(D,)``."""
        return self.loss - self.whole

    @property
    def expected_loss(self) -> float:
        """Posterior mean of the loss with the plan."""
        return self.loss.mean().item()

    @property
    def regret(self) -> float:
        """Posterior mean of the loss minus the loss of the draw's own best channels.

        Below 0 where the plan does better than to go by the gates of single draws.
        """
        return (self.loss - self.best).mean().item()

    def probability(self, delta: float) -> float:
        """Posterior probability that the loss rises by less than `delta`."""
        return (self.rise < delta).double().mean().item()

    @property
    def verdict(self) -> str:
        low, middle, high = self.rise.quantile(self.rise.new_tensor([0.05, 0.5, 0.95])).tolist()
        return (
            f"expected loss {self.expected_loss:.4g} per example, with all channels "
            f"{self.whole.mean():.4g}; the plan raises it by "
            f"{middle:.3g} (90% of {len(self.loss)} draws from {low:.3g} to {high:.3g}); regret "
            f"{self.regret:.3g} against the draw's own best channels (without a threshold: "
            "RiskBudget takes yours)"
        )

    def to_frame(self) -> pd.DataFrame:
        columns = {"loss": self.loss, "whole": self.whole, "rise": self.rise, "best": self.best}
        rows = {
            name: {"mean": v.mean().item()}
            | {f"{q:.0%}": v.quantile(q).item() for q in (0.05, 0.5, 0.95)}
            for name, v in columns.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("loss").reset_index()


def plan_risk(
    plan: PruningPlan,
    posterior: SwitchPosterior,
    network: nn.Module,
    groups: ChannelGroups,
    loader: Loader,
    *,
    num_draws: int = 100,
    examples: int = 2048,
    loss: Loss | None = None,
    seed: int = 1,
) -> PlanRisk:
    """Expected loss and regret of a plan under the posterior, on held-out data.

    Parameters
    ----------
    plan : PruningPlan
        Of the network that the switches were fitted to.
    posterior : SwitchPosterior
    network : nn.Module
        That network.
    groups : ChannelGroups
        From `trace_groups` of it.
    loader : DataLoader
        Held-out batches ``(inputs, targets)``.
    num_draws : int
        Of the gates, at least 1; the network runs three times for each.
    examples : int
        How many held-out examples to measure on, at least 1.
    loss : callable, optional
        ``(output, targets)`` to the mean loss of a batch; cross-entropy by default.
    seed : int
        Of the draws. `RiskBudget` takes those of 0: a plan that it chose should not be judged by
        the same ones.

    Returns
    -------
    PlanRisk

    Raises
    ------
    ConfigError
        If a number is below 1.
    PlanError
        If plan, posterior and groups do not fit each other.
    DataError
        If the held-out data is empty or gives a loss that is not finite or cannot be computed.
    """
    check_integer("num_draws", num_draws)
    check_integer("examples", examples)
    plan.check(groups)
    draws = posterior.sample(num_draws, seed)
    sizes = {name: gates.shape[1] for name, gates in draws.items()}
    if {n: sizes.get(n) for n in plan.sizes} != plan.sizes:
        raise PlanError(f"plan_risk: a plan of {plan.sizes} for a posterior of {sizes}")
    held_out = HeldOut(network, groups, loader, examples, loss)
    everything = {name: list(range(size)) for name, size in plan.sizes.items()}
    best = []
    for index in range(num_draws):
        one = {name: gates[index] for name, gates in draws.items()}
        own = {
            name: sorted(one[name].abs().topk(len(kept)).indices.tolist())
            for name, kept in plan.kept.items()
        }
        best.append(held_out(own, one))
    return PlanRisk(
        loss_draws(held_out, plan.kept, draws),
        loss_draws(held_out, everything, draws),
        torch.tensor(best, dtype=torch.double),
    )
