"""Several draws of one latent variable, counted once."""

from __future__ import annotations

from typing import Any

from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.types import _size


class Replicated(TorchDistribution):
    """`count` independent draws that stand for one draw of `base`.

    The expected log likelihood of a data set is a sum over examples, so each example may see a draw
    of its own without bias; the latent variable is still one, and its log density and divergence
    count once.

    Parameters
    ----------
    base : Distribution
        Event shape ``E``, batch shape ``B``.
    count : int
        Number of draws; the event shape becomes ``(count,) + E``. Only for an empty ``B``.
    """

    arg_constraints: dict[str, Any] = {}  # type: ignore[assignment]

    def __init__(self, base: Any, count: int) -> None:
        self.base = base
        self.count = count
        super().__init__(base.batch_shape, Size((count, *base.event_shape)), validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.base.has_rsample

    def rsample(self, sample_shape: _size = Size()) -> Tensor:
        return self.base.rsample((*sample_shape, self.count))

    def sample(self, sample_shape: _size = Size()) -> Tensor:
        return self.base.sample((*sample_shape, self.count))

    def log_prob(self, value: Tensor) -> Tensor:
        """The mean over draws: the log density of one latent variable."""
        return self.base.log_prob(value).mean(-1)

    def expand(self, batch_shape: _size, _instance: Any = None) -> Replicated:
        return Replicated(self.base.expand(batch_shape), self.count)
