"""Batches: inputs and targets, and what is done to all tensors of a batch alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from bayesprune.errors import DataError

Inputs = Tensor | tuple[Tensor, ...]
"""What a network is called with: one argument ``(N, …)``, or a tuple of them."""

Batch = tuple[Inputs, Tensor]
"""Inputs and targets ``(N, …)``."""


class Loader(Protocol):
    """What training needs of a data loader: a length in batches, and iteration over batches."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...


def as_arguments(inputs: Any) -> tuple[Any, ...]:
    """The positional arguments that a network is called with: a tuple of them, or one alone."""
    return inputs if isinstance(inputs, tuple) else (inputs,)


def tensors_of(batch: Batch) -> tuple[Tensor, ...]:
    """The tensors of a batch: all inputs, then the targets."""
    inputs, targets = batch
    return (*as_arguments(inputs), targets)


def of_each(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """A batch with all its tensors changed alike."""
    return _batch(map(change, tensors_of(batch)), batch)


def on_device(batch: Batch, device: torch.device | str) -> Batch:
    """A batch with all tensors on a device."""
    return of_each(batch, lambda tensor: tensor.to(device))


def split(batch: Batch, size: int) -> list[Batch]:
    """A batch in parts of at most `size` examples."""
    parts = zip(*(tensor.split(size) for tensor in tensors_of(batch)), strict=True)
    return [_batch(part, batch) for part in parts]


def joined(parts: Sequence[Batch]) -> Batch:
    """The examples of one or more batches in one."""
    columns = zip(*map(tensors_of, parts), strict=True)
    return _batch(map(torch.cat, columns), parts[0])


def _batch(tensors: Iterable[Tensor], like: Batch) -> Batch:
    """A batch of these tensors, its inputs in a tuple if those of another are."""
    *inputs, targets = tensors
    return (tuple(inputs) if isinstance(like[0], tuple) else inputs[0]), targets


def checked_batch(batch: Any, index: int) -> Batch:
    """Inputs and targets of what a loader gave.

    Parameters
    ----------
    batch : Any
        A pair; in place of one input tensor there may be a tuple or list of them, for networks that
        take several arguments.
    index : int
        Its place in the loader, for messages.

    Raises
    ------
    DataError
        If it is not a pair of tensors with the same number of rows, at least 1.
    """
    if isinstance(batch, list | tuple) and len(batch) == 2:
        inputs: Any = tuple(batch[0]) if isinstance(batch[0], list | tuple) else batch[0]
        checked: Batch = inputs, batch[1]
        tensors = tensors_of(checked)
        if (
            all(isinstance(tensor, Tensor) and tensor.ndim > 0 for tensor in tensors)
            and len(tensors) > 1
            and len({len(tensor) for tensor in tensors}) == 1
            and len(batch[1]) > 0
        ):
            return checked

    def shown(part: Any) -> str:
        kind = type(part).__name__
        return f"{kind} of shape {tuple(part.shape)}" if isinstance(part, Tensor) else kind

    got = shown(batch)
    if isinstance(batch, list | tuple):
        got += f" ({', '.join(shown(part) for part in batch)})"
    raise DataError(
        "loader: expected batches (inputs, targets) of two tensors with the same number of rows, "
        f"at least 1; got {got} in batch {index}. Several inputs come in a tuple of their own, "
        "((a, b), targets)"
    )


def check_finite(batch: Batch, index: int, where: str) -> None:
    """Raise DataError if a batch, at place `index` in its loader, has NaN or inf."""
    if any(t.is_floating_point() and not t.isfinite().all() for t in tensors_of(batch)):
        raise DataError(
            f"loader: expected finite values, got NaN or inf in batch {index} ({where})"
        )
