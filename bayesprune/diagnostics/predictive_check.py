"""Predictions averaged over switches beside those of single networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from bayesprune._checks import check_integer
from bayesprune.batches import Loader
from bayesprune.diagnostics._diagnostic import Diagnostic
from bayesprune.errors import ConfigError
from bayesprune.gating import GatedNetwork
from bayesprune.groups import ChannelGroups
from bayesprune.posterior import SwitchPosterior
from bayesprune.training import evaluate


class SwitchAverage(nn.Module):
    """A classifier whose class probabilities are averages over drawn gates.

    Parameters
    ----------
    network : nn.Module
        Maps inputs to logits; copied.
    groups : ChannelGroups
        From `trace_groups` of the same network.
    gates : mapping of str to Tensor
        Draws, shape ``(num_draws, C)``: `SwitchPosterior.sample`.
    """

    def __init__(
        self, network: nn.Module, groups: ChannelGroups, gates: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        self.network = GatedNetwork(network, groups, gates)
        device = next(network.parameters()).device
        self.gates = {name: drawn.to(device) for name, drawn in gates.items()}

    def forward(self, *inputs: Tensor) -> Tensor:
        """Log of the mean class probabilities, shape ``(N, classes)``."""
        number = len(next(iter(self.gates.values())))
        parts = [
            self.network(inputs, {n: drawn[i] for n, drawn in self.gates.items()}).log_softmax(1)
            for i in range(number)
        ]
        return torch.stack(parts).logsumexp(0) - torch.tensor(float(number)).log()


@dataclass(frozen=True, repr=False, eq=False)
class PredictiveCheck(Diagnostic):
    """Held-out quality of the switch-averaged predictor beside single networks.

    Attributes
    ----------
    quality : DataFrame
        Indexed by predictor: "switch-averaged", "mean gates", "network", and "pruned" if it was
        given; columns `error`, `nll`, `ece` and `brier`, see `bayesprune.evaluate`.
    """

    quality: pd.DataFrame

    @property
    def verdict(self) -> str:
        averaged, single = self.quality.loc["switch-averaged"], self.quality.loc["mean gates"]
        words = "better than" if averaged["nll"] < single["nll"] else "no better than"
        return (
            f"averaging over switches predicts {words} the network with mean gates: nll "
            f"{averaged['nll']:.4f} against {single['nll']:.4f}, ece {averaged['ece']:.4f} against "
            f"{single['ece']:.4f}, Brier score {averaged['brier']:.4f} against "
            f"{single['brier']:.4f} (lower is better; a comparison, without a threshold)"
        )

    def to_frame(self) -> pd.DataFrame:
        return self.quality.rename_axis("predictor").reset_index()


def predictive_check(
    posterior: SwitchPosterior,
    network: nn.Module,
    groups: ChannelGroups,
    loader: Loader,
    *,
    pruned: nn.Module | None = None,
    num_draws: int = 32,
    seed: int = 0,
) -> PredictiveCheck:
    """Error, negative log likelihood, calibration error and Brier score of four predictors.

    Parameters
    ----------
    posterior : SwitchPosterior
    network : nn.Module
        The classifier that the switches were fitted to (where weights were trained along, the
        fitted ones: ``switched.fold({})``).
    groups : ChannelGroups
        From `trace_groups` of it.
    loader : DataLoader
        Held-out inputs and labels; read once for each predictor.
    pruned : nn.Module, optional
        The network after pruning.
    num_draws : int
        Gates that are averaged over: so many runs of the network per batch, at least 1.
    seed : int

    Returns
    -------
    PredictiveCheck

    Raises
    ------
    ConfigError
        If `num_draws` is below 1, or the posterior has no group.
    DataError, FitError, PlanError
        See `bayesprune.evaluate` and `SwitchedNetwork`.
    """
    check_integer("num_draws", num_draws)
    if not posterior.names:
        raise ConfigError("predictive_check: expected a posterior of at least one group, got none")
    mean = {name: gate[None] for name, gate in posterior.mean.items()}
    predictors = {
        "switch-averaged": SwitchAverage(network, groups, posterior.sample(num_draws, seed)),
        "mean gates": SwitchAverage(network, groups, mean),
        "network": network,
    }
    if pruned is not None:
        predictors["pruned"] = pruned
    rows = {name: evaluate(predictor, loader) for name, predictor in predictors.items()}
    return PredictiveCheck(pd.DataFrame.from_dict(rows, orient="index"))
