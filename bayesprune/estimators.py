"""Estimators of the expected log likelihood, as Pyro effect handlers on switch sites."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import InferDict
from torch import Size, Tensor
from torch.distributions import Distribution, kl_divergence, register_kl
from torch.types import _size

from bayesprune._describe import init_args
from bayesprune.distributions import Replicated
from bayesprune.errors import ConfigError, FitError

SWITCH = "switch"
"""Key under which a sample site says, in its `infer` dictionary, that it belongs to a switch."""


def switch_site() -> InferDict:
    """The `infer` dictionary of a switch site."""
    infer: Any = {SWITCH: True}
    return infer


class Estimator(ABC):
    """Abstract: how model and guide are run so that the ELBO's likelihood term is estimated.

    Attributes
    ----------
    num_particles : int
        How often one step runs the network.
    """

    num_particles: int = 1

    @abstractmethod
    def wrap(
        self, model: Callable[..., Any], guide: Callable[..., Any], batch_size: int
    ) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Model and guide under this estimator's handlers, for a batch of `batch_size`."""

    def __repr__(self) -> str:
        args = ", ".join(f"{name}={value!r}" for name, value in init_args(self).items())
        return f"{type(self).__name__}({args})"


class AnalyticMean(Estimator):
    r"""Put the mean of each factor in place of a draw: no sampling, no noise.

    Takes :math:`E_q \log p(D|s) \approx \log p(D|E_q s)`. The gradient is exact only where the log
    likelihood is linear in the gates over the spread of the posterior; at wide posteriors it is
    biased, and the posterior's spread is then set by the prior alone. Needs `TraceMeanField_ELBO`
    and a closed-form divergence: anything else scores the factor's density at its mean, which is
    an infinite loss here and a FitError in the backward pass.

    References
    ----------
    Adamczewski and Park, AISTATS 2021, section 3.
    """

    def wrap(
        self, model: Callable[..., Any], guide: Callable[..., Any], batch_size: int
    ) -> tuple[Callable[..., Any], Callable[..., Any]]:
        return model, _AtMean()(guide)


class Implicit(Estimator):
    """Reparameterised draws; Gamma variates by implicit differentiation. Unbiased.

    Parameters
    ----------
    num_samples : int
        Number of draws per step, at least 1.
    share : {"batch", "group", "example"}
        Who shares a draw: the whole batch (the network runs once per draw); a random group of
        examples, as many groups as draws (one run); or nobody (`num_samples` runs, each with a draw
        per example). All are unbiased; groups and examples have far lower variance per second.

    Raises
    ------
    ConfigError
        If an argument is out of range.

    References
    ----------
    Figurnov, Mohamed and Mnih, "Implicit Reparameterization Gradients", NeurIPS 2018. Draws per
    example as in Kingma, Salimans and Welling, "Variational Dropout", NeurIPS 2015.
    """

    def __init__(
        self, num_samples: int = 1, share: Literal["batch", "group", "example"] = "batch"
    ) -> None:
        if num_samples < 1:
            raise ConfigError(f"Implicit: num_samples must be at least 1, got {num_samples}")
        if share not in ("batch", "group", "example"):
            raise ConfigError(
                f"Implicit: share must be 'batch', 'group' or 'example', got {share!r}"
            )
        self.num_samples = num_samples
        self.share = share
        self.num_particles = 1 if share == "group" else num_samples

    def wrap(
        self, model: Callable[..., Any], guide: Callable[..., Any], batch_size: int
    ) -> tuple[Callable[..., Any], Callable[..., Any]]:
        if self.share == "batch":
            return model, guide
        draws = batch_size if self.share == "example" else min(self.num_samples, batch_size)
        counted_once = _Replicate(batch_size)
        return counted_once(model), _Draw(batch_size, draws)(guide)


class _SwitchMessenger(Messenger):
    """Abstract: changes messages of switch sites only."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["infer"].get(SWITCH):
            self.change(msg)

    def change(self, msg: Any) -> None:
        raise NotImplementedError


class _AtMean(_SwitchMessenger):
    def change(self, msg: Any) -> None:
        msg["fn"] = _Mean(msg["fn"])


class _Mean(TorchDistribution):
    """A factor of which only the mean and the divergence may be used."""

    arg_constraints: ClassVar[dict[str, Any]] = {}  # type: ignore[assignment]
    has_rsample = True

    def __init__(self, factor: Any) -> None:
        self.factor = factor
        super().__init__(factor.batch_shape, factor.event_shape, validate_args=False)

    def rsample(self, sample_shape: _size = Size()) -> Tensor:
        return self.factor.mean.expand(self._extended_shape(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return _Unscored.apply(value.sum()).expand(self.batch_shape)


class _Unscored(torch.autograd.Function):
    """A log density that Pyro computes in any case, for as long as no loss makes use of it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return torch.full_like(value, -torch.inf)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise FitError(
            "AnalyticMean: the loss scores the density of a factor at its mean; expected "
            "TraceMeanField_ELBO and, between prior and factor, a divergence that "
            "torch.distributions.kl_divergence knows"
        )


@register_kl(_Mean, Distribution)
def _kl_mean(q: _Mean, p: Distribution) -> Tensor:
    return kl_divergence(q.factor, p)


class _Replicate(_SwitchMessenger):
    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size

    def change(self, msg: Any) -> None:
        msg["fn"] = Replicated(msg["fn"], self.batch_size)


class _Draw(_Replicate):
    """Fewer draws than examples: each is shared by a random group of examples of equal size."""

    def __init__(self, batch_size: int, draws: int) -> None:
        super().__init__(batch_size)
        self.draws = draws

    def __enter__(self) -> Any:
        # One assignment for all sites of a run: examples that share one gate share them all.
        self.order = torch.randperm(self.batch_size) % self.draws
        return super().__enter__()

    def change(self, msg: Any) -> None:
        values = msg["fn"].rsample((self.draws,))
        super().change(msg)
        if self.draws < self.batch_size:
            values = values.index_select(0, self.order.to(values.device))
        msg["value"] = values
