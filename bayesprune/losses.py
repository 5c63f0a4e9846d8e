"""Losses by which channels are judged: cross-entropy, or whatever a user measures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn

from bayesprune.errors import DataError

Loss = Callable[[Any, Any], Tensor]
"""``(output, targets)`` of a batch to a loss."""


def shown(value: Any) -> str:
    """What a value is, for messages."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    parts = value.values() if isinstance(value, dict) else value
    inner = f" ({', '.join(map(shown, parts))})" if isinstance(value, dict | list | tuple) else ""
    return type(value).__name__ + inner


def batch_loss(loss: Loss | None, output: Any, targets: Any) -> Tensor:
    """The mean loss of a batch, a scalar; cross-entropy by default.

    Raises
    ------
    DataError
        If the loss cannot be computed, or is something else.
    """
    value = _cross_entropy(output, targets, "mean") if loss is None else loss(output, targets)
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise DataError(
            "loss: expected a function of (output, targets) that returns the mean over the batch, "
            f"a scalar tensor; got {shown(value)}"
        )
    return value.reshape(())


def example_losses(loss: Loss | None, output: Any, targets: Tensor) -> Tensor:
    """The loss of each example, shape ``(N,)``; cross-entropy by default.

    Raises
    ------
    DataError
        If the losses cannot be computed, or are something else.
    """
    if loss is None:
        # Targets with positions (segmentation) have a loss for each of these.
        return _cross_entropy(output, targets, "none").flatten(1).mean(1)
    values = loss(output, targets)
    if not isinstance(values, Tensor) or values.shape != (len(targets),):
        raise DataError(
            "loss: expected a function of (output, targets) that returns one loss per example, "
            f"shape ({len(targets)},); got {shown(values)} (reduction='none'?)"
        )
    return values


def _cross_entropy(output: Any, targets: Any, reduction: Literal["mean", "none"]) -> Tensor:
    if isinstance(targets, Tensor) and not targets.is_floating_point():
        targets = targets.long()
    try:
        losses = nn.functional.cross_entropy(output, targets, reduction=reduction)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(
            "loss: cross-entropy expects a network's logits (N, classes) and integer targets (N,); "
            f"got {shown(output)} and {shown(targets)} ({error}). Pass loss=..., a function of "
            "(output, targets), for anything else"
        ) from error
    return losses if reduction == "mean" else losses.reshape(len(targets), -1)
