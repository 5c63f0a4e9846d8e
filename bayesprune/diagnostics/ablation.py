"""What it costs to lose each channel, under the posterior of all gates."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from bayesprune._checks import check_integer
from bayesprune._modes import evaluating
from bayesprune.batches import Loader, checked_batch, on_device
from bayesprune.diagnostics._diagnostic import Diagnostic, shown
from bayesprune.errors import DataError
from bayesprune.gating import GatedNetwork
from bayesprune.groups import ChannelGroups
from bayesprune.losses import Loss, batch_loss
from bayesprune.posterior import SwitchPosterior
from bayesprune.selection import ChannelScores


@dataclass(frozen=True, repr=False, eq=False)
class Ablation(Diagnostic):
    """Rise of the held-out loss if one channel's gate is set to 0, draw by draw.

    Attributes
    ----------
    rises : dict of str to Tensor
        By group, shape ``(num_draws, C)``: mean loss per example without the channel minus with
        it, all other gates as drawn.
    """

    rises: dict[str, Tensor]

    @property
    def expected(self) -> dict[str, Tensor]:
        """Posterior mean of the rise, shape ``(C,)``: the expected gain of keeping the channel."""
        return {name: rise.mean(0) for name, rise in self.rises.items()}

    @property
    def scores(self) -> ChannelScores:
        """The expected rise as scores; they are comparable between groups."""
        return ChannelScores(
            {name: rise.float() for name, rise in self.expected.items()}, "expected ablation loss"
        )

    @property
    def verdict(self) -> str:
        expected = torch.cat(list(self.expected.values()))
        free = int((expected <= 0).sum())
        return (
            f"{free} of {len(expected)} channels can each be lost, alone, without a rise of the "
            f"expected loss; the dearest costs {expected.max():.3g} per example (exact ablation at "
            f"{len(next(iter(self.rises.values())))} draws, without a threshold; rises of several "
            "channels do not add up)"
        )

    def to_frame(self) -> pd.DataFrame:
        parts = [
            pd.DataFrame(
                {
                    "layer": name,
                    "channel": range(rise.shape[1]),
                    "expected_rise": rise.mean(0).numpy(),
                    "sd": rise.std(0, correction=0).numpy(),
                    "P(rise > 0)": (rise > 0).double().mean(0).numpy(),
                }
            )
            for name, rise in self.rises.items()
        ]
        return pd.concat(parts, ignore_index=True)


def ablation(
    posterior: SwitchPosterior,
    network: nn.Module,
    groups: ChannelGroups,
    loader: Loader,
    *,
    num_draws: int = 4,
    loss: Loss | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Ablation:
    """Posterior predictive loss of removing, and so of not removing, each channel by itself.

    Exact: for every batch and draw the network runs once for every channel with that gate at 0, and
    once with all. The loader is read once and nothing of it is kept.

    Parameters
    ----------
    posterior : SwitchPosterior
    network : nn.Module
        The network that the switches were fitted to (where weights were trained along, the fitted
        ones: ``switched.fold({})``).
    groups : ChannelGroups
        From `trace_groups` of it.
    loader : DataLoader
        Held-out batches ``(inputs, targets)``.
    num_draws : int
        Of the gates, at least 1.
    loss : callable, optional
        ``(output, targets)`` to the mean loss of a batch; cross-entropy by default.
    seed : int
    progress : bool
        Whether to show a bar over batches.

    Returns
    -------
    Ablation

    Raises
    ------
    ConfigError
        If `num_draws` is below 1.
    DataError
        If the loader is empty, or a loss cannot be computed or is not finite.
    PlanError
        If the posterior does not fit the groups.
    """
    check_integer("num_draws", num_draws)
    device = next(network.parameters()).device
    gated = GatedNetwork(network, groups, posterior.names)
    gates = {name: drawn.to(device) for name, drawn in posterior.sample(num_draws, seed).items()}
    rises = {
        name: torch.zeros(drawn.shape, dtype=torch.double, device=device)
        for name, drawn in gates.items()
    }
    seen = 0
    with evaluating(gated):
        for index, batch in enumerate(shown(loader, "ablation", progress, len(loader))):
            inputs, targets = on_device(checked_batch(batch, index), device)
            seen += len(targets)
            for draw in range(num_draws):
                one = {name: drawn[draw] for name, drawn in gates.items()}
                whole = batch_loss(loss, gated(inputs, one), targets).double()
                for name, gate in one.items():
                    for channel in range(len(gate)):
                        without = gate.clone()
                        without[channel] = 0
                        output = gated(inputs, {**one, name: without})
                        rise = batch_loss(loss, output, targets).double() - whole
                        rises[name][draw, channel] += rise * len(targets)
    if not seen:
        raise DataError("ablation: the loader is empty")
    rises = {name: (rise / seen).cpu() for name, rise in rises.items()}
    for name, rise in rises.items():
        if not rise.isfinite().all():
            raise DataError(f"ablation: the loss without a channel of {name} is not finite")
    return Ablation(rises)
