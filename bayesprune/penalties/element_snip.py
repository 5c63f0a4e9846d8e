"""Single-shot pruning of single weights by connection sensitivity."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from bayesprune._checks import check_number
from bayesprune._modes import seeded
from bayesprune.batches import Loader, as_arguments, checked_batch, on_device
from bayesprune.errors import DataError
from bayesprune.losses import batch_loss
from bayesprune.penalties._penalty import State
from bayesprune.penalties._weights import WeightPenalty
from bayesprune.training import Step


class ElementSNIP(WeightPenalty):
    r"""Keeps the weights with the largest :math:`|w \, \partial L / \partial w|` before training.

    The sensitivities of one batch are compared over all layers, and the other weights stay 0.
    Meant for a network at its initialisation.

    Parameters
    ----------
    keep : float
        Share of all weights that stay, in (0, 1].

    Raises
    ------
    ConfigError
        If `keep` is out of range.
    DataError
        On use, if the loader is empty or its first batch is not (inputs, targets) for the network.

    References
    ----------
    Lee, Ajanthan and Torr, "SNIP: single-shot network pruning based on connection sensitivity",
    ICLR 2019.
    """

    reference = "Lee et al., ICLR 2019"

    def __init__(self, keep: float = 0.1) -> None:
        check_number(f"{type(self).__name__}.keep", keep, above=0, high=1)
        self.keep = keep

    def start(self, network: nn.Module, weights: dict[str, nn.Parameter], loader: Loader) -> State:
        network = copy.deepcopy(network)  # a pass in train mode changes running statistics
        device = next(iter(weights.values())).device
        with seeded(0, device), torch.enable_grad():
            if isinstance(generator := getattr(loader, "generator", None), torch.Generator):
                generator.manual_seed(0)
            loaded = next(iter(loader), None)
            if loaded is None:
                raise DataError("ElementSNIP: the loader is empty")
            inputs, targets = on_device(checked_batch(loaded, 0), device)
            arguments = as_arguments(inputs)
            loss = batch_loss(None, network.train()(*arguments), targets)
            copies = [network.get_parameter(name) for name in weights]
            grads = torch.autograd.grad(loss, copies)
        sizes = [(w * g).abs().detach() for w, g in zip(copies, grads, strict=True)]
        ranked = torch.cat([size.flatten() for size in sizes])
        count = max(1, round(self.keep * len(ranked)))
        kept = torch.zeros_like(ranked).index_fill(0, ranked.topk(count).indices, 1.0)
        masks = kept.split([size.numel() for size in sizes])
        state = {n: m.view_as(weights[n]) for n, m in zip(weights, masks, strict=True)}
        with torch.no_grad():
            for name, weight in weights.items():
                weight.mul_(state[name])
        return state

    def value(self, weights: dict[str, nn.Parameter]) -> Tensor:
        return next(iter(weights.values())).new_zeros(())

    def loss(self, weights: dict[str, nn.Parameter]) -> None:
        return None

    def after_step(self, weights: dict[str, nn.Parameter], state: State, step: Step) -> None:
        for name, weight in weights.items():
            weight.mul_(state[name])
