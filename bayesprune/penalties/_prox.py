"""Proximal operators on magnitudes; each acts on many vectors at once."""

from __future__ import annotations

import torch
from torch import Tensor


def mixed_norm(magnitudes: Tensor) -> Tensor:
    """Root of the sum over the second last axis of squared sums over the last.

    Parameters
    ----------
    magnitudes : Tensor
        Shape ``(..., G, K)``, at least 0.
    """
    squares = magnitudes.sum(-1).square().sum(-1)
    return safe_root(squares)


def safe_root(squares: Tensor) -> Tensor:
    """The square root, with gradient 0 at 0."""
    alive = squares > 0
    return torch.where(alive, squares.where(alive, torch.ones_like(squares)).sqrt(), 0)


def group_soft_factors(norms: Tensor, level: Tensor | float) -> Tensor:
    """What multiplies vectors of these norms in the proximal operator of ``level * norm``."""
    safe = norms.where(norms > 0, torch.ones_like(norms))
    return torch.where(norms > level, 1 - level / safe, 0)


def soft(values: Tensor, level: Tensor | float) -> Tensor:
    """Soft thresholding, the proximal operator of ``level * sum of absolute values``."""
    return values.sign() * (values.abs() - level).clamp_min(0)


def exclusive_level(magnitudes: Tensor, strength: Tensor) -> Tensor:
    """The level of soft thresholding that is the proximal operator of ``strength/2 (sum |x|)²``.

    With m entries above the level, of sum S, it is ``strength * S / (1 + strength * m)``. Starting
    from all entries, those below the level leave until none does.

    Parameters
    ----------
    magnitudes : Tensor
        Shape ``(..., K)``, at least 0.
    strength : Tensor
        Shape ``(...)``, at least 0.

    Returns
    -------
    Tensor
        Shape ``(...)``.
    """
    level = torch.zeros_like(strength)
    count = None
    while True:
        active = magnitudes > level[..., None]
        now = active.sum(-1)
        if count is not None and torch.equal(now, count):
            return level
        count = now
        total = (magnitudes * active).sum(-1)
        level = torch.maximum(level, strength * total / (1 + strength * count))


def mixed_levels(magnitudes: Tensor, level: Tensor) -> Tensor:
    r"""The levels of soft thresholding that are the prox of ``level * sqrt(sum_g (sum_k |x|)²)``.

    With :math:`a_g = \sum_k |x_{gk}|` and :math:`N = \|a\|_2` the solution is soft thresholding at
    :math:`c\,a_g`, :math:`c = \text{level} / N`: the proximal operator of half the squared sums
    times c. For given active entries, N is :math:`\|S_g / (1 + c m_g)\|_2`, and c solves
    :math:`c N(c) = \text{level}`; both alternate until the active entries stay. The solution is 0
    if the level is at least the dual norm :math:`\|(\max_k |x_{gk}|)_g\|_2`.

    Parameters
    ----------
    magnitudes : Tensor
        Shape ``(..., G, K)``, at least 0.
    level : Tensor
        Shape ``(...)``, at least 0.

    Returns
    -------
    Tensor
        Shape ``(..., G)``; infinite where the solution is 0.
    """
    zero = level >= magnitudes.amax(-1).norm(dim=-1)
    wanted = level.double().where(~zero, torch.zeros_like(level.double()))
    strength = torch.zeros_like(wanted)
    levels = torch.zeros_like(magnitudes[..., 0])
    count = None
    for _ in range(_ALTERNATIONS):
        active = magnitudes > levels[..., None]
        now = active.sum(-1)
        if count is not None and torch.equal(now, count):
            break
        count = now
        sums = (magnitudes * active).sum(-1).double()
        strength = _solve(sums, count.double(), wanted)
        levels = exclusive_level(magnitudes, strength[..., None].to(levels).expand_as(levels))
    return levels.masked_fill(zero[..., None], torch.inf)


_ALTERNATIONS = 50
_BISECTIONS = 60


def _solve(sums: Tensor, counts: Tensor, level: Tensor) -> Tensor:
    """The c with ``c * norm(sums / (1 + c * counts)) = level``, which increases in c."""
    low, high = torch.zeros_like(level), torch.ones_like(level)  # of c / (1 + c)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        c = middle / (1 - middle)
        below = c * (sums / (1 + c[..., None] * counts)).norm(dim=-1) < level
        low, high = middle.where(below, low), high.where(below, middle)
    return low / (1 - low)
