"""A network whose channels are multiplied by given gates, and its way back to a plain one."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayesprune._modes import without_fused_attention
from bayesprune.batches import as_arguments
from bayesprune.errors import ConfigError, PlanError
from bayesprune.groups import ChannelGroups
from bayesprune.layers.attention import fit_heads, separate_heads


class Gated(nn.Module):
    """A layer that reads gated channels: its input is multiplied by the gates.

    Gates act where channels are read, after every normalisation and activation in between. A gate
    of 0 therefore removes everything the channel would emit, and any gate folds into the weights of
    the reading layer whatever the activation.
    """

    index: Tensor

    def __init__(
        self,
        module: nn.Module,
        index: Tensor,
        sizes: Mapping[str, int],
        gates: dict[str, Tensor],
    ) -> None:
        super().__init__()
        self.module = module
        self._sizes = sizes
        # Positions of each input channel's gates in [1, gates of the first group, of the second,
        # …]: more than one row where channels are parts of others, whose gates multiply theirs.
        self.register_buffer("index", index, persistent=False)
        self._gates = gates  # shared by all layers of a network; empty outside a forward pass

    def __getattr__(self, name: str) -> Any:
        """The wrapped layer's weight, sizes and so on, for code that looks at them."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def scale(self, gates: Mapping[str, Tensor]) -> Tensor | None:
        """The multiplier of each input channel, shape ``(..., channels)``; None if all are 1."""
        given = [gates[name] for name in self._sizes if name in gates]
        if not given:
            return None
        batch = torch.broadcast_shapes(*(gate.shape[:-1] for gate in given))
        one = given[0].new_ones(())
        parts = [one.expand(*batch, 1)]
        for name, size in self._sizes.items():
            parts.append(gates.get(name, one).expand(*batch, size))
        gate = torch.cat(parts, -1)
        rows = [gate.index_select(-1, row) for row in self.index]
        return functools.reduce(torch.mul, rows)

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        scale = self.scale(self._gates)
        if scale is None:
            return self.module(input, *args, **kwargs)
        if scale.ndim > 1 and len(scale) != len(input):
            raise ConfigError(
                f"gates per example: {self.module} gets {len(input)} rows for {len(scale)} "
                "examples; this network needs gates that the batch shares"
            )
        if not isinstance(self.module, nn.Linear):
            scale = scale.reshape(*scale.shape, *(1,) * (self.weight.ndim - 2))
        elif scale.ndim > 1:
            scale = scale.reshape(len(scale), *(1,) * (input.ndim - 2), -1)
        return self.module(input * scale.to(input.dtype), *args, **kwargs)

    def folded(self, gates: Mapping[str, Tensor]) -> nn.Module:
        """The wrapped layer itself, with the gates multiplied into its weight."""
        weight = self.weight
        scale = self.scale({name: gate.to(weight.device) for name, gate in gates.items()})
        if scale is not None:
            shape = [1] * weight.ndim
            shape[_input_axis(self.module)] = -1
            with torch.no_grad():
                weight.mul_(scale.reshape(shape))
        return self.module


def _input_axis(module: nn.Module) -> int:
    """The axis of a layer's weight along which its input channels lie."""
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    return 0 if transposed else 1


class GatedNetwork(nn.Module):
    """A copy of a network that runs with given gates on the channels of some of its groups.

    Parameters
    ----------
    network : nn.Module
        Copied, never modified.
    groups : ChannelGroups
        From `trace_groups` of the same network.
    names : iterable of str, optional
        The groups to gate; all of them by default.

    Raises
    ------
    PlanError
        If the groups do not fit the network, or a name is not that of a group.
    """

    def __init__(
        self, network: nn.Module, groups: ChannelGroups, names: Iterable[str] | None = None
    ) -> None:
        super().__init__()
        names = list(groups) if names is None else list(names)
        unknown = [name for name in names if name not in groups]
        if unknown:
            raise PlanError(f"unknown groups: {', '.join(unknown)}; known: {', '.join(groups)}")
        groups.check(network)
        self.sizes = {name: groups[name].size for name in names}
        self._gates: dict[str, Tensor] = {}
        self.network = copy.deepcopy(network)
        separate_heads(self.network)
        readers: dict[str, dict[str, Tensor]] = {}
        for name in names:
            for slice_ in groups[name].slices:
                if slice_.role == "consumer":
                    readers.setdefault(slice_.module, {})[name] = slice_.units
        modules = dict(self.network.named_modules(remove_duplicate=False))
        for path, units in readers.items():
            gated = self._gated(modules[path], units)
            for alias, other in modules.items():
                if other is modules[path]:
                    self.network.set_submodule(alias, gated)

    def _gated(self, layer: nn.Module, units: Mapping[str, Tensor]) -> Gated:
        first = next(iter(units.values()))
        weight = layer.weight
        assert isinstance(weight, Tensor)  # consumers are convolutions and linear layers
        rows, offset = [torch.zeros_like(first)], 1
        for name, owned in units.items():
            place = torch.where(owned >= 0, owned + offset, 0)
            offset += self.sizes[name]
            free = next((i for i, row in enumerate(rows) if not (row * place).any()), None)
            if free is None:
                rows.append(place)
            else:
                rows[free] = rows[free] + place
        sizes = {name: self.sizes[name] for name in units}
        return Gated(layer, torch.stack(rows).to(weight.device), sizes, self._gates)

    def forward(self, inputs: Any, gates: Mapping[str, Tensor] | None = None) -> Any:
        """The network's output on `inputs` (a tensor, or a tuple of arguments).

        Parameters
        ----------
        inputs : Tensor or tuple
        gates : mapping of str to Tensor
            Shape ``(C,)``, or ``(N, C)`` for gates per example; a group without one is not gated.

        Raises
        ------
        PlanError
            If a group is unknown or its gates have another size.
        """
        gates = gates or {}
        for name, gate in gates.items():
            self._check(name, gate.shape[-1:], gate)
        self._gates.update(gates)
        try:
            with without_fused_attention():  # it does not call the layers, so would pass by gates
                return self.network(*as_arguments(inputs))
        finally:
            self._gates.clear()

    def _check(self, name: str, shape: torch.Size, gate: Tensor) -> None:
        if name not in self.sizes:
            raise PlanError(f"{name}: gates for an unknown group; known: {', '.join(self.sizes)}")
        if tuple(shape) != (self.sizes[name],):
            raise PlanError(
                f"{name}: expected gates of size {self.sizes[name]}, got shape {tuple(gate.shape)}"
            )

    def fold(self, gates: Mapping[str, Tensor]) -> nn.Module:
        """A plain network with the original module names that computes what the gates make it.

        Parameters
        ----------
        gates : mapping of str to Tensor
            One gate per unit, shape ``(C,)``.

        Raises
        ------
        PlanError
            If a group is unknown or its gates have another shape.
        """
        for name, gate in gates.items():
            self._check(name, gate.shape, gate)
        plain = copy.deepcopy(self.network)
        folded: dict[nn.Module, nn.Module] = {}
        for path, module in list(plain.named_modules(remove_duplicate=False)):
            if isinstance(module, Gated):
                if module not in folded:
                    folded[module] = module.folded(gates)
                plain.set_submodule(path, folded[module])
        for module in plain.modules():
            fit_heads(module)
        return plain
