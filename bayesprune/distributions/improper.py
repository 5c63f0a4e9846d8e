"""Priors that are given by a divergence alone: improper, or not probability distributions."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NoReturn, Self

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import Bernoulli, Distribution, Normal
from torch.types import _size

from bayesprune.distributions.hard_concrete import HardConcrete
from bayesprune.errors import ConfigError


class Improper(TorchDistribution):
    """Abstract: a prior of which only the divergence of a factor from it is known.

    ``kl_divergence(factor, prior)`` is ``prior.divergence(factor)``, so that an ELBO with
    closed-form divergences takes such a prior like any other. `log_prob` is 0: an estimator that
    scores draws instead would lose the prior.

    The batch shape is that of the parameters, one per key of `arg_constraints`.
    """

    arg_constraints: dict[str, Any] = {}  # type: ignore[assignment]
    support = constraints.real  # type: ignore[assignment]

    @abstractmethod
    def divergence(self, factor: Any) -> Tensor:
        """Divergence of `factor`, which has no event dimensions, from this prior.

        Broadcasts over the batch shapes of both; not negative.

        Raises
        ------
        ConfigError
            If the divergence of such a factor is unknown.
        """

    def log_prob(self, value: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        return torch.zeros(shape, dtype=value.dtype, device=value.device)

    def rsample(self, sample_shape: _size = Size()) -> NoReturn:
        raise NotImplementedError(
            f"{type(self).__name__} has no samples: it is no probability distribution"
        )

    sample = rsample

    def expand(self, batch_shape: _size, _instance: Any = None) -> Self:
        new: Any = self._get_checked_instance(type(self), _instance)
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name).expand(batch_shape))
        TorchDistribution.__init__(new, Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _refuse(self, factor: Distribution, expected: str) -> NoReturn:
        raise ConfigError(
            f"{type(self).__name__}: expected a factor of type {expected}, without event "
            f"dimensions beyond those of the prior; got {type(factor).__name__} with event shape "
            f"{tuple(factor.event_shape)}"
        )


class NormalJeffreys(Improper):
    r"""The prior :math:`p(z) \propto 1/|z|`, for a normal factor.

    The divergence is shifted so that its least value, in the limit of
    :math:`\alpha = \sigma^2/\mu^2 \to \infty`, is 0, and approximated within 0.01 nats by
    :math:`k_1 (1 - \mathrm{sigmoid}(k_2 + k_3 \log\alpha)) + \tfrac12 \log(1 + 1/\alpha)`.
    Molchanov, Ashukha & Vetrov, Variational Dropout Sparsifies Deep Neural Networks, ICML 2017,
    eq. 14; as a prior of groups: Louizos, Ullrich & Welling, Bayesian Compression for Deep
    Learning, NeurIPS 2017.
    """

    def __init__(self) -> None:
        super().__init__(validate_args=False)

    def divergence(self, factor: Any) -> Tensor:
        if not isinstance(factor, Normal):
            self._refuse(factor, "Normal")
        # 1 / alpha in double precision, where its square root may have any float32 value.
        inverse = (factor.loc.double() / factor.scale.double()) ** 2
        logit = 1.48695 * (inverse + 1e-30).log() - 1.87320  # that of 1 - sigmoid(k2 + ...)
        divergence = 0.63576 * logit.sigmoid() + inverse.log1p() / 2
        return divergence.to(factor.loc.dtype).expand(_joint_shape(factor, self))


class NonzeroPenalty(Improper):
    """The L0 penalty: `rate` nats times P(z ≠ 0), for hard concrete and Bernoulli factors.

    Louizos, Welling & Kingma, Learning Sparse Neural Networks through L0 Regularization, ICLR 2018.

    Parameters
    ----------
    rate : Tensor or float
        Price of a variable that is not 0, in nats; not negative.
    """

    arg_constraints: dict[str, Any] = {"rate": constraints.nonnegative}  # type: ignore[assignment]
    rate: Tensor

    def __init__(self, rate: Tensor | float, validate_args: bool | None = None) -> None:
        self.rate = torch.as_tensor(rate)
        super().__init__(self.rate.shape, validate_args=validate_args)

    def divergence(self, factor: Any) -> Tensor:
        if isinstance(factor, HardConcrete):
            return self.rate * factor.probability_nonzero
        if isinstance(factor, Bernoulli):
            return self.rate * factor.probs
        self._refuse(factor, "HardConcrete or Bernoulli")


class InformationBottleneckPrior(Improper):
    r"""The penalty :math:`\tfrac12 \gamma \log(1 + \mu^2/\sigma^2)` of a normal factor.

    It is the divergence from a normal prior of mean 0 whose variance is at its best, times
    :math:`\gamma`. Dai, Zhu, Guo & Wipf, Compressing Neural Networks using the Variational
    Information Bottleneck, ICML 2018.

    Parameters
    ----------
    strength : Tensor or float
        :math:`\gamma`, not negative.
    """

    arg_constraints: dict[str, Any] = {  # type: ignore[assignment]
        "strength": constraints.nonnegative
    }
    strength: Tensor

    def __init__(self, strength: Tensor | float, validate_args: bool | None = None) -> None:
        self.strength = torch.as_tensor(strength)
        super().__init__(self.strength.shape, validate_args=validate_args)

    def divergence(self, factor: Any) -> Tensor:
        if not isinstance(factor, Normal):
            self._refuse(factor, "Normal")
        squared = (factor.loc.double() / factor.scale.double()) ** 2
        return self.strength * (squared.log1p() / 2).to(factor.loc.dtype)


def _joint_shape(factor: Distribution, prior: Distribution) -> Size:
    return torch.broadcast_shapes(factor.batch_shape, prior.batch_shape)
