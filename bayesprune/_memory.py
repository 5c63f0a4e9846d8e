"""What a fixed network said of inputs it has seen, so that it is not asked twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

LIMIT = 3_000_000
"""Inputs that are remembered at most: about 250 bytes each for ten classes."""


class OutputMemory:
    """The outputs of one network, by the bytes of its inputs; `len` is the number of inputs."""

    def __init__(self) -> None:
        self._places: dict[bytes, int] = {}
        self._table = torch.empty(0)

    def __len__(self) -> int:
        return len(self._places)

    def outputs(
        self, network: Callable[[Any], Tensor], inputs: Tensor | tuple[Tensor, ...]
    ) -> Tensor:
        """``network(inputs)``, shape ``(N, classes)``, of rows that were never seen only.

        Several inputs, for a network of as many arguments, come as a tuple. The network has to
        treat rows independently and be the same at every call. Nothing is differentiated.
        """
        tensors = inputs if isinstance(inputs, tuple) else (inputs,)
        parts = [t.detach().cpu().reshape(len(t), -1).contiguous() for t in tensors]
        rows = torch.cat([part.view(torch.uint8) for part in parts], 1).numpy()
        keys = [hashlib.blake2b(row, digest_size=12).digest() for row in rows]
        new = list({key: n for n, key in enumerate(keys) if key not in self._places}.items())
        with torch.no_grad():
            if len(self) + len(new) > LIMIT:
                return network(inputs)
            if new:
                chosen = [n for _, n in new]
                picked = tuple(tensor[chosen] for tensor in tensors)
                made = network(picked if isinstance(inputs, tuple) else picked[0])
                self._add([key for key, _ in new], made.cpu())
        return self._table[[self._places[key] for key in keys]].to(tensors[0].device)

    def _add(self, keys: list[bytes], rows: Tensor) -> None:
        first, last = len(self), len(self) + len(keys)
        if last > len(self._table):  # doubled, so that growing costs little
            grown = rows.new_empty(max(2 * len(self._table), last), rows.shape[1])
            if first:
                grown[:first] = self._table[:first]
            self._table = grown
        self._table[first:last] = rows
        self._places |= dict(zip(keys, range(first, last), strict=True))


def memory_of(network: nn.Module) -> OutputMemory:
    """The memory of a network, one for all networks of the same structure and weights.

    A process keeps that of the network it was asked for last.
    """
    told = hashlib.blake2b(repr(network).encode())
    for name, tensor in network.state_dict().items():
        told.update(name.encode())
        told.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return _memory(told.digest())


@lru_cache(maxsize=1)
def _memory(fingerprint: bytes) -> OutputMemory:
    return OutputMemory()
