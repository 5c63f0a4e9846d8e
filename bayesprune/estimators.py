"""Estimators of the expected log likelihood, as Pyro effect handlers on switch sites."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.infer.trace_mean_field_elbo import TraceMeanField_ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import InferDict
from pyro.poutine.util import site_is_subsample
from torch import Size, Tensor
from torch.distributions import Bernoulli, Distribution, Independent, kl_divergence, register_kl
from torch.types import _size

from bayesprune._describe import init_args
from bayesprune.distributions import Improper, Replicated
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

    def loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], inputs: Any, targets: Tensor
    ) -> Tensor:
        """The negative evidence lower bound of a batch, in nats of the whole data set."""
        wrapped = self.wrap(model, guide, len(targets))
        elbo = TraceMeanField_ELBO(num_particles=self.num_particles)
        return elbo.differentiable_loss(*wrapped, inputs, targets)

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
        return model, _TakeMean()(guide)


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
            return model, _Pathwise()(guide)
        draws = batch_size if self.share == "example" else min(self.num_samples, batch_size)
        counted_once = _Replicate(batch_size)
        return counted_once(model), _Draw(batch_size, draws)(guide)


class _AugmentReinforce(Estimator):
    r"""Abstract: gradients for Bernoulli gates from the losses of drawn gates.

    Every example n draws uniforms :math:`u_n` of its own, and from them gates
    :math:`1[u_n < \sigma(\varphi)]`. The slope of its loss in the logits :math:`\varphi` is
    :math:`w_n (u_n - \frac12)` with a weight that the subclass gives. Sites of other kinds are
    drawn along, reparameterised.
    """

    def wrap(
        self, model: Callable[..., Any], guide: Callable[..., Any], batch_size: int
    ) -> tuple[Callable[..., Any], Callable[..., Any]]:
        return _Replicate(batch_size)(model), _Coins(batch_size)(guide)

    def loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], inputs: Any, targets: Tensor
    ) -> Tensor:
        coins, observed, other = _Coins(len(targets)), _Observed(), _Observed()
        counted_once = _Replicate(len(targets))(model)
        elbo = TraceMeanField_ELBO()
        loss = elbo.differentiable_loss(observed(counted_once), coins(guide), inputs, targets)

        def antithetic() -> Tensor:
            coins.flipped = True
            trace = poutine.trace(coins(guide)).get_trace(inputs, targets)
            poutine.replay(other(counted_once), trace)(inputs, targets)
            return other.loss

        with torch.no_grad():
            weight = self.weight(observed.loss, antithetic)[:, None]
        for logits, uniform in coins.tossed.values():
            slope = (weight * (uniform - 0.5)).sum(0)
            loss = loss + ((logits - logits.detach()) * slope).sum()
        return loss

    @abstractmethod
    def weight(self, loss: Tensor, antithetic: Callable[[], Tensor]) -> Tensor:
        r"""The weight of each example, shape ``(N,)``.

        Parameters
        ----------
        loss : Tensor
            Loss of each example with its gates, shape ``(N,)``.
        antithetic : callable
            Gives the losses with the gates :math:`1[u > \sigma(-\varphi)]`; runs the network.
        """


class ARM(_AugmentReinforce):
    r"""Augment-REINFORCE-merge: two runs with antithetic draws. Unbiased, for Bernoulli gates.

    The slope in the logits is :math:`(f(1[u > \sigma(-\varphi)]) - f(1[u < \sigma(\varphi)]))
    (u - \frac12)`, with draws per example.

    References
    ----------
    Yin and Zhou, "ARM: Augment-REINFORCE-Merge Gradient", ICLR 2019; Li and Ji, "L0-ARM", ECML
    2019.
    """

    def weight(self, loss: Tensor, antithetic: Callable[[], Tensor]) -> Tensor:
        return antithetic() - loss


class AR(_AugmentReinforce):
    r"""Augment-REINFORCE: one run, more variance than `ARM`. Unbiased, for Bernoulli gates.

    The slope in the logits is :math:`f(1[u < \sigma(\varphi)]) (1 - 2u)`.

    References
    ----------
    Yin and Zhou, ICLR 2019, equation 6; Li and Ji, "L0-ARM", ECML 2019.
    """

    def weight(self, loss: Tensor, antithetic: Callable[[], Tensor]) -> Tensor:
        return -2 * loss


class _SwitchMessenger(Messenger):
    """Abstract: changes messages of switch sites only."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["infer"].get(SWITCH):
            self.change(msg)

    def change(self, msg: Any) -> None:
        raise NotImplementedError


class _Pathwise(_SwitchMessenger):
    """Refuses factors whose draws have no gradient, which Pyro would take as they are."""

    def change(self, msg: Any) -> None:
        if not msg["fn"].has_rsample:
            raise ConfigError(
                f"{msg['name']}: Implicit needs reparameterised draws, which "
                f"{_kind(msg['fn'])} factors do not have; use ARM, AR or AnalyticMean"
            )


def _kind(distribution: Any) -> str:
    """The name of a distribution under its wrappers."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return type(distribution).__name__


class _TakeMean(_SwitchMessenger):
    def change(self, msg: Any) -> None:
        msg["fn"] = AtMean(msg["fn"])


class AtMean(TorchDistribution):
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


@register_kl(AtMean, Improper)  # torch would not know which of two to prefer
@register_kl(AtMean, Distribution)
def _kl_mean(q: AtMean, p: Distribution) -> Tensor:
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
        _Pathwise().change(msg)
        values = msg["fn"].rsample((self.draws,))
        super().change(msg)
        if self.draws < self.batch_size:
            values = values.index_select(0, self.order.to(values.device))
        msg["value"] = values


class _Coins(_Replicate):
    """Bernoulli gates per example from uniforms, which are kept for the antithetic ones."""

    def __init__(self, batch_size: int) -> None:
        super().__init__(batch_size)
        self.flipped = False
        self.tossed: dict[str, tuple[Tensor, Tensor]] = {}  # logits and uniforms by site
        self._others: dict[str, Tensor] = {}

    def change(self, msg: Any) -> None:
        factor, name = msg["fn"], msg["name"]
        base = factor.base_dist if isinstance(factor, Independent) else factor
        if isinstance(base, Bernoulli):
            # Of the factor only the divergence is needed: the slope does not come from its density.
            msg["fn"] = AtMean(factor)
            super().change(msg)
            if name not in self.tossed:
                uniform = torch.rand(self.batch_size, *base.logits.shape).to(base.logits)
                self.tossed[name] = (base.logits, uniform)
            logits, uniform = self.tossed[name]
            ones = uniform > (-logits).sigmoid() if self.flipped else uniform < logits.sigmoid()
            msg["value"] = ones.to(logits.dtype)
        elif factor.has_rsample:
            super().change(msg)
            if name not in self._others:
                self._others[name] = factor.rsample((self.batch_size,))
            msg["value"] = self._others[name]
        else:
            raise ConfigError(f"{name}: expected a Bernoulli or reparameterised factor")


class _Observed(Messenger):
    """Keeps the loss of each example."""

    loss: Tensor

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"] and not site_is_subsample(msg):
            self.loss = -msg["scale"] * msg["fn"].log_prob(msg["value"])
