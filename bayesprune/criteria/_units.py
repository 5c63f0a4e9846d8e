"""What belongs to a unit, and what flows through it: shared by the criteria."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bayesprune.batches import (
    Batch,
    Inputs,
    check_finite,
    checked_batch,
    joined,
    of_each,
    on_device,
)
from bayesprune.errors import DataError
from bayesprune.gating import Gated, GatedNetwork
from bayesprune.groups import ChannelGroup, ChannelGroups, Role, Slice
from bayesprune.losses import Loss, example_losses


def parameters(network: nn.Module, groups: ChannelGroups) -> dict[str, Tensor]:
    """Parameters by every name they have, on the CPU in single precision.

    Raises
    ------
    PlanError
        If the groups do not fit the network.
    """
    groups.check(network)
    named = network.named_parameters(remove_duplicate=False)
    return {name: tensor.detach().cpu().float() for name, tensor in named}


def unit_entries(
    group: ChannelGroup, tensors: dict[str, Tensor], roles: Collection[Role] = ("producer",)
) -> Tensor:
    """The entries of `tensors` that a group's units own, one row per unit.

    Entries at the same place of a row are counterparts: weights of the same input at the same
    position, say. Rows of units that own fewer entries than others are filled up with zeros.
    Slices of tensors that are not in `tensors` are left out.

    Returns
    -------
    Tensor
        Shape ``(C, entries)``.
    """
    rows = [torch.zeros(group.size, 0)]
    for slice_ in group.slices:
        if slice_.role in roles and slice_.tensor in tensors:
            along = tensors[slice_.tensor].movedim(slice_.axis, 0)
            along = along.reshape(1, len(along), -1)
            rows.append(split_units(along, slice_.units, group.size)[0].flatten(1))
    return torch.cat(rows, 1)


def unit_weights(group: ChannelGroup, tensors: dict[str, Tensor]) -> Tensor:
    """The weights that produce each unit, shape ``(C, entries)``.

    Of selected inputs, which no weight produces, those that read them.
    """
    made = unit_entries(group, tensors)
    return made if made.shape[1] else unit_entries(group, tensors, ("consumer",))


def split_units(values: Tensor, units: Tensor, size: int) -> Tensor:
    """Values along an axis by the unit that owns them.

    Parameters
    ----------
    values : Tensor
        Shape ``(N, axis, …)``.
    units : Tensor
        Shape ``(axis,)``: the unit that owns each entry, -1 if none does.
    size : int
        Number of units.

    Returns
    -------
    Tensor
        Shape ``(N, size, k, …)`` for units that own k entries each; zeros where one owns fewer.
    """
    counts = torch.bincount(units + 1, minlength=size + 1)[1:]
    order = torch.argsort(units, stable=True)[int((units < 0).sum()) :]
    first = counts.cumsum(0) - counts
    place = torch.arange(len(order)) - first.repeat_interleave(counts)
    split = values.new_zeros(len(values), size, int(counts.max()), *values.shape[2:])
    split[:, units[order].to(values.device), place.to(values.device)] = values[
        :, order.to(values.device)
    ]
    return split


def batches(
    loader: Iterable[Any], device: torch.device, who: str, examples: int | None = None
) -> Iterator[Batch]:
    """The batches of a loader on a device, at most `examples` examples of them.

    Raises
    ------
    DataError
        If there are none, or one is not (inputs, targets) or not finite.
    """
    seen = 0
    for index, loaded in enumerate(loader):
        batch = checked_batch(loaded, index)
        check_finite(batch, index, who)
        size = len(batch[1])
        left = size if examples is None else min(size, examples - seen)
        yield on_device(of_each(batch, lambda tensor, left=left: tensor[:left]), device)
        seen += left
        if seen == examples:
            break
    if not seen:
        raise DataError(f"{who}: the loader is empty")


def minibatches(loader: Iterable[Batch], size: int) -> Iterator[Batch]:
    """The examples of a loader in batches of `size`, the last one smaller if it must be."""
    waiting: list[Batch] = []
    for batch in loader:
        waiting.append(batch)
        while sum(len(targets) for _, targets in waiting) >= size:
            whole = joined(waiting)
            yield of_each(whole, lambda tensor: tensor[:size])
            waiting = [of_each(whole, lambda tensor: tensor[size:])]
    if sum(len(targets) for _, targets in waiting):
        yield joined(waiting)


class GateDerivatives:
    """Derivatives of a loss by the gates of a network in evaluation mode, at gate 1.

    The derivative by a gate is the sum of activation times gradient over all that is read of the
    unit, and the sum of weight times gradient over all weights that read it.

    Parameters
    ----------
    network, groups
        As for a criterion.
    loss : callable, optional
        ``(output, targets)`` to one loss per example; cross-entropy by default.
    """

    def __init__(self, network: nn.Module, groups: ChannelGroups, loss: Loss | None) -> None:
        self.gated = GatedNetwork(network, groups).eval().requires_grad_(False)
        self.sizes = groups.sizes
        self.loss = loss
        self.device = next(network.parameters()).device

    def __call__(self, inputs: Inputs, targets: Tensor, *gates: int) -> dict[str, Tensor]:
        """Of the loss summed over the batch, by gates of shape ``(*gates, C)``.

        With ``gates = (len(targets),)`` there is one gate, and so one derivative, per example.
        """
        ones = {
            name: torch.ones(*gates, size, device=self.device, requires_grad=True)
            for name, size in self.sizes.items()
        }
        with torch.enable_grad():
            loss = example_losses(self.loss, self.gated(inputs, ones), targets).sum()
        found = torch.autograd.grad(loss, list(ones.values()))
        return dict(zip(ones, found, strict=True))


Visit = Callable[[str, Slice, nn.Module, Tensor], None]


def read_activations(
    network: nn.Module,
    groups: ChannelGroups,
    loader: Iterable[Any],
    visit: Visit,
    who: str,
    examples: int,
) -> None:
    """Show what each layer reads of each group, where gates act, batch by batch.

    Parameters
    ----------
    network, groups, loader
        As for a criterion.
    visit : callable
        ``(group, slice, layer, input)`` for each layer that reads the group, each time that it
        runs: the slice of its weight, the layer itself, and all that it reads.
    who : str
        Who asks, for messages.
    examples : int
        The first so many examples of the loader are run.
    """
    gated = GatedNetwork(network, groups).eval()

    def hook(name: str, slice_: Slice, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(module, Gated)
        visit(name, slice_, module.module, args[0])

    for name, group in groups.items():
        for slice_ in group.slices:
            if slice_.role == "consumer":
                reader = gated.network.get_submodule(slice_.module)
                reader.register_forward_pre_hook(partial(hook, name, slice_))
    device = next(network.parameters()).device
    with torch.no_grad():
        for inputs, _ in batches(loader, device, who, examples):
            gated(inputs)
