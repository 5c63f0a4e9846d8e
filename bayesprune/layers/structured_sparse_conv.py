"""Convolutions with a fixed sparse pattern that runs as small dense convolutions.

Of the inputs of an output channel, every g-th is read through half of the kernel's positions (a
checkerboard), and every p-th through its centre. Outputs that read the same inputs are gathered, so
that each of the two parts is one grouped convolution on strided channels: nothing is masked at the
size of the dense layer.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayesprune._checks import check_integer, check_number
from bayesprune.errors import ConfigError


class StructuredSparseConv2d(nn.Module):
    r"""A 2-D convolution with about :math:`1/(2g) + 1/(p K^2)` of the weights.

    Output o reads input i through the positions of one colour of the :math:`K \times K`
    checkerboard if g divides :math:`i - o`, and through the centre if p divides it. The colour
    changes from output to output and from one round of g outputs to the next, so that every input
    is read through both. A :math:`1 \times 1` kernel has the second part alone. The paper gives the
    pattern for one output; how it moves from output to output is our reading.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int
        K, odd.
    p, g : int
        Distances between the inputs that are read, at least 1.
    stride, padding, dilation : int
    bias : bool

    Attributes
    ----------
    even, odd : Parameter or None
        Weights on either colour of the checkerboard, shape ``(pairs, positions)``: a row for each
        output and input, by output. None for a 1x1 kernel.
    centre : Parameter
        Shape ``(pairs, 1)``.

    Raises
    ------
    ConfigError
        If `kernel_size` is even, or a number is below 1.

    Notes
    -----
    The grouped kernel of the first part is filled with zeros on the other colour: it has half of
    the parameters, and all of the multiply-accumulates, of a convolution with g groups.

    References
    ----------
    Verma et al., "Structured sparse convolutions", WACV 2023 (arXiv 2210.12818).
    """

    even_at: Tensor
    odd_at: Tensor
    centre_at: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        p: int,
        g: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        numbers = {"in_channels": in_channels, "out_channels": out_channels, "p": p, "g": g}
        for name, value in (numbers | {"kernel_size": kernel_size}).items():
            check_integer(f"StructuredSparseConv2d.{name}", value)
        if kernel_size % 2 == 0:
            raise ConfigError(
                f"StructuredSparseConv2d.kernel_size: expected an odd number, got {kernel_size}"
            )
        self.in_channels, self.out_channels, self.kernel_size = (
            in_channels,
            out_channels,
            kernel_size,
        )
        self.p, self.g = p, g
        self.stride, self.padding, self.dilation = stride, padding, dilation
        halves: list[nn.Parameter | None] = [None, None]
        if kernel_size > 1:
            outputs, inputs = _pairs(in_channels, out_channels, g)
            places = _places(outputs, inputs, g, in_channels, out_channels)
            positions = torch.arange(kernel_size**2)
            for parity, name in enumerate(("even_at", "odd_at")):
                # Counted row by row, neighbours differ in parity, for K is odd.
                at = positions[positions % 2 == parity]
                index = places[_colour(outputs, g) == parity][:, None] * kernel_size**2 + at
                halves[parity] = nn.Parameter(torch.empty(index.shape))
                self.register_buffer(name, index.flatten(), persistent=False)
        self.even, self.odd = halves
        pairs = _pairs(in_channels, out_channels, p)
        self.centre = nn.Parameter(torch.empty(len(pairs[0]), 1))
        index = _places(*pairs, p, in_channels, out_channels)
        self.register_buffer("centre_at", index, persistent=False)
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal weights that keep the variance of what ReLU lets through; biases of 0."""
        weights = [weight for weight in (self.even, self.odd, self.centre) if weight is not None]
        fan_in = sum(weight.numel() for weight in weights) / self.out_channels
        for weight in weights:
            nn.init.normal_(weight, std=math.sqrt(2 / fan_in))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"p={self.p}, g={self.g}, stride={self.stride}, padding={self.padding}"
        )

    def forward(self, x: Tensor) -> Tensor:
        """From (N, in_channels, H, W) to (N, out_channels, H', W')."""
        reach = self.dilation * (self.kernel_size // 2)
        margin = self.padding - reach
        # The centres of the kernels are a 1x1 convolution on what is inside this margin.
        inner = F.pad(x, (margin,) * 4) if margin < 0 else x
        kernel = self._kernel(self.p, [(self.centre, self.centre_at)], 1)
        out = _on_strided_channels(
            inner, kernel, self.p, self.out_channels, self.stride, max(margin, 0), 1
        )
        if self.even is not None and self.odd is not None:
            parts = [(self.even, self.even_at), (self.odd, self.odd_at)]
            kernel = self._kernel(self.g, parts, self.kernel_size)
            out = out + _on_strided_channels(
                x, kernel, self.g, self.out_channels, self.stride, self.padding, self.dilation
            )
        return out if self.bias is None else out + self.bias[:, None, None]

    def _kernel(self, groups: int, parts: Sequence[tuple[Tensor, Tensor]], size: int) -> Tensor:
        """Weights of a grouped convolution: outputs by group, padded to groups of equal size."""
        outputs = math.ceil(self.out_channels / groups) * groups
        inputs = math.ceil(self.in_channels / groups)
        flat = parts[0][0].new_zeros(outputs * inputs * size**2)
        for weight, at in parts:
            flat = flat.index_copy(0, at, weight.flatten())
        return flat.reshape(outputs, inputs, size, size)

    def dense_weight(self) -> Tensor:
        """The weight of the dense convolution that computes the same, (out, in, K, K)."""
        middle = self.kernel_size // 2
        weight = _dense(self._kernel(self.p, [(self.centre, self.centre_at)], 1), self.p, self)
        weight = F.pad(weight, (middle,) * 4)
        if self.even is not None and self.odd is not None:
            parts = [(self.even, self.even_at), (self.odd, self.odd_at)]
            weight = weight + _dense(self._kernel(self.g, parts, self.kernel_size), self.g, self)
        return weight


def _pairs(in_channels: int, out_channels: int, distance: int) -> tuple[Tensor, Tensor]:
    """Outputs and the inputs they read, those whose numbers agree modulo a distance."""
    outputs, inputs = torch.arange(out_channels), torch.arange(in_channels)
    agree = (outputs[:, None] - inputs) % distance == 0
    found = agree.nonzero()
    return found[:, 0], found[:, 1]


def _colour(outputs: Tensor, g: int) -> Tensor:
    """Which half of the checkerboard an output uses: 0 or 1."""
    return (outputs % g + outputs // g) % 2


def _places(
    outputs: Tensor, inputs: Tensor, groups: int, in_channels: int, out_channels: int
) -> Tensor:
    """Where pairs lie in the weight of the grouped convolution, counted in whole kernels."""
    per_group, width = math.ceil(out_channels / groups), math.ceil(in_channels / groups)
    row = outputs % groups * per_group + outputs // groups
    return row * width + inputs // groups


def _on_strided_channels(
    x: Tensor,
    kernel: Tensor,
    groups: int,
    out_channels: int,
    stride: int,
    padding: int,
    dilation: int,
) -> Tensor:
    """A grouped convolution in which group r holds channels r, r + groups, … of both sides."""
    missing = -x.shape[1] % groups
    x = F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x
    x = x.unflatten(1, (-1, groups)).transpose(1, 2).flatten(1, 2)
    out = F.conv2d(x, kernel, None, stride, padding, dilation, groups)
    return out.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)[:, :out_channels]


def _dense(kernel: Tensor, groups: int, layer: StructuredSparseConv2d) -> Tensor:
    """The weight of the convolution without groups."""
    size = kernel.shape[-1]
    dense = kernel.new_zeros(layer.out_channels, layer.in_channels, size, size)
    outputs, inputs = _pairs(layer.in_channels, layer.out_channels, groups)
    places = _places(outputs, inputs, groups, layer.in_channels, layer.out_channels)
    values = kernel.reshape(-1, size, size)[places.to(kernel.device)]
    return dense.index_put((outputs.to(kernel.device), inputs.to(kernel.device)), values)


def to_structured_sparse(network: nn.Module, p: int, g: int) -> nn.Module:
    """Return a copy of a network with fresh structured sparse convolutions.

    The first convolution and those with groups, unequal sides or even kernels stay as they are, and
    so does everything else. The network is to be trained from scratch.

    Parameters
    ----------
    network : nn.Module
        Left untouched; runs its convolutions in the order in which it holds them.
    p, g : int
        See `StructuredSparseConv2d`.

    Returns
    -------
    nn.Module
        Of the same class, with the same module names.

    Raises
    ------
    ConfigError
        If no convolution can be replaced.
    """
    network = copy.deepcopy(network)
    replaced = list(_replaceable(network))
    if not replaced:
        raise ConfigError(
            f"{type(network).__name__}: expected a convolution to replace besides the first, "
            "without groups and with an odd, square kernel, got none"
        )
    for path, old in replaced:
        layer = StructuredSparseConv2d(
            old.in_channels,
            old.out_channels,
            old.kernel_size[0],
            p,
            g,
            stride=old.stride[0],
            padding=_padding(old),
            dilation=old.dilation[0],
            bias=old.bias is not None,
        )
        network.set_submodule(path, layer.to(old.weight).train(old.training))
    return network


def _replaceable(network: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    convolutions = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    for path, layer in convolutions[1:]:
        sides = (layer.kernel_size, layer.stride, layer.dilation, (_padding(layer),) * 2)
        square = all(a == b for a, b in sides) and layer.kernel_size[0] % 2 == 1
        if square and layer.groups == 1 and layer.padding_mode == "zeros" and _padding(layer) >= 0:
            yield path, layer


def _padding(layer: nn.Conv2d) -> int:
    """The same padding on all sides, or -1."""
    if layer.padding == "same":
        return layer.dilation[0] * (layer.kernel_size[0] // 2)
    if layer.padding == "valid":
        return 0
    first, second = layer.padding
    return int(first) if first == second else -1


@dataclass(frozen=True)
class SparsePattern:
    """A choice of p and g for a network.

    Attributes
    ----------
    p, g : int
    fraction : float
        Share of all the network's parameters that is left, layers that stay dense included.
    """

    p: int
    g: int
    fraction: float


def sparse_patterns(
    network: nn.Module, fraction: float, *, largest: int = 64, tolerance: float = 0.05
) -> list[SparsePattern]:
    """Find the p and g that leave a given share of a network's parameters.

    Parameters
    ----------
    network : nn.Module
    fraction : float
        In (0, 1).
    largest : int
        Largest p and g to look at.
    tolerance : float
        Relative distance from the fraction that is allowed.

    Returns
    -------
    list of SparsePattern
        With exact numbers of parameters, the closest first.

    Raises
    ------
    ConfigError
        If the fraction is out of range or no p and g come close enough.
    """
    check_number("fraction", fraction, above=0, below=1)
    total = sum(parameter.numel() for parameter in network.parameters())
    layers = [layer for _, layer in _replaceable(network)]
    rest = total - sum(layer.weight.numel() for layer in layers)
    spatial = [layer for layer in layers if layer.kernel_size[0] > 1]
    centres = [sum(_count(layer, p) for layer in layers) for p in range(1, largest + 1)]
    halves = [
        sum(_half(layer, g) for layer in spatial) for g in range(1, (largest if spatial else 1) + 1)
    ]
    found = [
        SparsePattern(p, g, (rest + centre + half) / total)
        for p, centre in enumerate(centres, start=1)
        for g, half in enumerate(halves, start=1)
    ]
    found.sort(key=lambda pattern: abs(pattern.fraction - fraction))
    close = [x for x in found if abs(x.fraction - fraction) <= tolerance * fraction]
    if not close:
        nearest = f"{found[0].fraction:.3%}" if found else "nothing"
        raise ConfigError(
            f"fraction: expected p and g up to {largest} that leave {fraction:.3%} of the "
            f"parameters, the closest leave {nearest}"
        )
    return close


def _count(layer: nn.Conv2d, distance: int) -> int:
    """How many pairs of an output and an input agree modulo a distance."""
    return sum(
        math.ceil((layer.in_channels - r) / distance)
        * math.ceil((layer.out_channels - r) / distance)
        for r in range(min(distance, layer.in_channels, layer.out_channels))
    )


def _half(layer: nn.Conv2d, g: int) -> int:
    """Weights on the checkerboards; one colour has a position more than the other."""
    positions = layer.kernel_size[0] ** 2
    outputs = torch.arange(layer.out_channels, device="cpu")
    read = ((layer.in_channels - outputs % g).clamp_min(0) + g - 1) // g
    even = int(read[_colour(outputs, g) == 0].sum())
    return even * (positions // 2 + 1) + (_count(layer, g) - even) * (positions // 2)
