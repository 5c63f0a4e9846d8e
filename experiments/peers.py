"""Pruners of other libraries as methods of a run, for comparisons with one recipe.

With this folder on the Python path, a config or the command line names them by class path, with a
rule that takes their own choice as it is::

    PYTHONPATH=experiments bayesprune run experiments/lenet5_mnist_penalties.yaml \\
        --method peers.TorchPruning --method.importance taylor --method.macs 100000 \\
        --select Threshold --select.value 0.5 --out runs/torch_pruning

The scores are 1 for the channels that the peer keeps and 0 for the others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.utils import prune

import bayesprune as bp
from bayesprune.criteria import Criterion
from bayesprune.errors import BudgetError

BATCHES = 10  # that Taylor importance sees
IMPORTANCES: dict[str, Callable[[], Any]] = {
    "magnitude": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    "taylor": lambda: tp.importance.GroupTaylorImportance(),
}


class TorchPruning(Criterion):
    """torch-pruning's pruner, at the largest size within a budget of MACs.

    Parameters
    ----------
    importance : {"magnitude", "taylor"}
        Its `GroupNormPruner` trains sparsely first: that is `bayesprune.penalties.GroupPruner`.
    macs : int
        The budget, found by bisection of the pruning ratio.
    global_pruning : bool
        Whether all layers' groups are ranked together; otherwise every layer loses the same share.
    """

    reference = "Fang et al., CVPR 2023 (torch-pruning)"

    def __init__(
        self, importance: str = "magnitude", macs: int = 100_000, global_pruning: bool = True
    ) -> None:
        if importance not in IMPORTANCES:
            raise ValueError(f"importance: expected one of {', '.join(IMPORTANCES)}")
        self.importance = importance
        self.macs = macs
        self.global_pruning = global_pruning

    def scores(
        self, network: nn.Module, groups: bp.ChannelGroups, loader: Iterable[Any]
    ) -> bp.ChannelScores:
        batches = list(islice(loader, BATCHES))
        example = batches[0][0][:1]
        network = copy.deepcopy(network).eval().requires_grad_(True)
        for inputs, targets in batches if self.importance == "taylor" else ():
            F.cross_entropy(network(inputs), targets).backward()
        low, high, found = 0.0, 1.0, None
        for _ in range(20):
            ratio = (low + high) / 2
            kept = self._prune(network, groups, example, ratio)
            plan = bp.PruningPlan(kept, groups.sizes)
            if bp.cost(bp.remove_channels(network, plan, example), example).macs <= self.macs:
                high, found = ratio, kept
            else:
                low = ratio
        if found is None:
            raise BudgetError(f"torch-pruning: no ratio leaves at most {self.macs:,} MACs")
        return bp.ChannelScores(_as_scores(found, groups), f"torch-pruning {self.importance}")

    def _prune(
        self,
        network: nn.Module,
        groups: bp.ChannelGroups,
        example: Tensor,
        ratio: float,
    ) -> dict[str, list[int]]:
        """The channels that are left of each group of a network with gradients."""
        gradients = [parameter.grad for parameter in network.parameters()]
        network = copy.deepcopy(network)
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter.grad = gradient
        names = {module: name for name, module in network.named_modules()}
        last = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
        pruner = tp.pruner.BasePruner(
            network,
            example,
            importance=IMPORTANCES[self.importance](),
            global_pruning=self.global_pruning,
            pruning_ratio=ratio,
            ignored_layers=[last],
        )
        kept = {name: set(range(size)) for name, size in groups.sizes.items()}
        for group in pruner.step(interactive=True):
            dep, gone = group[0]
            name = names[dep.target.module]
            if name in kept and len(kept[name]) > len(set(gone) & kept[name]):
                kept[name] -= set(gone)
        return {name: sorted(units) for name, units in kept.items()}


class StructuredL2(Criterion):
    """``torch.nn.utils.prune.ln_structured`` on every producing layer, the same share of each.

    What a plain PyTorch user would do: filters of least l2 norm are masked, then removed.

    Parameters
    ----------
    macs : int
        The budget, found by bisection of the share.
    """

    reference = "torch.nn.utils.prune"

    def __init__(self, macs: int = 100_000) -> None:
        self.macs = macs

    def scores(
        self, network: nn.Module, groups: bp.ChannelGroups, loader: Iterable[Any]
    ) -> bp.ChannelScores:
        example = next(iter(loader))[0][:1]
        low, high, found = 0.0, 1.0, None
        for _ in range(20):
            share = (low + high) / 2
            kept = {}
            for name, size in groups.sizes.items():
                layer = copy.deepcopy(network.get_submodule(name))
                if not isinstance(layer, nn.Conv2d | nn.Linear):
                    kept[name] = list(range(size))
                    continue
                amount = min(size - 1, round(share * size))
                prune.ln_structured(layer, "weight", amount=amount, n=2, dim=0)
                alive = layer.weight_mask.flatten(1).any(1)
                kept[name] = alive.nonzero()[:, 0].tolist()
            plan = bp.PruningPlan(kept, groups.sizes)
            if bp.cost(bp.remove_channels(network, plan, example), example).macs <= self.macs:
                high, found = share, kept
            else:
                low = share
        if found is None:
            raise BudgetError(f"torch.nn.utils.prune: no share leaves {self.macs:,} MACs")
        return bp.ChannelScores(_as_scores(found, groups), "torch.nn.utils.prune l2")


def _as_scores(kept: dict[str, list[int]], groups: bp.ChannelGroups) -> dict[str, Tensor]:
    return {
        name: torch.zeros(size).index_fill(0, torch.tensor(kept[name]), 1.0)
        for name, size in groups.sizes.items()
    }
