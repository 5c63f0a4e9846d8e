"""Gaussian posteriors of the weights, beside those of the switches."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional

from bayesprune.errors import ConfigError
from bayesprune.switches import Site


class GaussianWeights:
    r"""Independent Gaussian posteriors of all weights and biases of linear and convolution layers.

    The prior is :math:`N(0, \tau^2)`. What a layer puts out is drawn, not its weights: for input x
    it is Gaussian with mean :math:`x M + b` and variance :math:`x^2 S + s_b` (local
    reparameterisation), drawn per example and position. In evaluation mode the mean is used.

    Parameters
    ----------
    prior_sd : float
        :math:`\tau`, above 0.
    init_sd : float
        Initial standard deviation of every weight, above 0.

    Raises
    ------
    ConfigError
        If a value is out of range.

    References
    ----------
    Louizos, Ullrich and Welling, "Bayesian Compression for Deep Learning", NeurIPS 2017; Kingma,
    Salimans and Welling, "Variational Dropout and the Local Reparameterization Trick", NeurIPS
    2015.
    """

    def __init__(self, prior_sd: float = 1.0, init_sd: float = 0.01) -> None:
        for name, value in (("prior_sd", prior_sd), ("init_sd", init_sd)):
            if not 0 < value < math.inf:
                raise ConfigError(f"GaussianWeights: {name} must be above 0, got {value!r}")
        self.prior_sd = prior_sd
        self.init_sd = init_sd

    def attach(self, network: nn.Module) -> None:
        """Give the layers of a network such posteriors, in place; warn of weights without."""
        made: dict[nn.Module, nn.Module] = {}
        for path, layer in list(network.named_modules(remove_duplicate=False)):
            if type(layer) in _NOISY:
                if layer not in made:
                    made[layer] = self._noisy(layer)
                network.set_submodule(path, made[layer])
        covered = {id(p) for layer in made.values() for p in layer.parameters()}
        left = [n for n, p in network.named_parameters() if p.ndim > 1 and id(p) not in covered]
        if left:
            warnings.warn(
                f"GaussianWeights: no posterior for {', '.join(left)}: only linear layers and "
                "convolutions have one; these weights are trained without a divergence",
                stacklevel=3,
            )

    def _noisy(self, layer: nn.Module) -> nn.Module:
        noisy = copy.copy(layer)
        noisy._parameters = dict(layer._parameters)
        noisy.__class__ = _NOISY[type(layer)]
        for name, mean in list(layer.named_parameters(recurse=False)):
            log_sd = torch.full_like(mean, math.log(self.init_sd))
            noisy.register_parameter(f"{name}_log_sd", nn.Parameter(log_sd))
        return noisy

    def sites(self, network: nn.Module) -> Iterator[tuple[str, Site]]:
        """Prior and posterior of every weight tensor, by parameter name."""
        for path, layer in network.named_modules():
            if isinstance(layer, NoisyLayer):
                for name, mean, sd in layer.posteriors():
                    prior = dist.Normal(torch.zeros_like(mean), self.prior_sd)
                    site = Site(
                        prior.to_event(mean.ndim), dist.Normal(mean, sd).to_event(mean.ndim)
                    )
                    yield f"{path}.{name}", site


class NoisyLayer(nn.Module):
    """Abstract: a layer whose weights have Gaussian posteriors."""

    weight_log_sd: Tensor
    bias_log_sd: Tensor

    def posteriors(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, means and standard deviations of every tensor."""
        for name in ("weight", "bias"):
            mean = getattr(self, name)
            if mean is not None:
                yield name, mean, getattr(self, f"{name}_log_sd").exp()

    def _variances(self) -> tuple[Tensor, Tensor | None]:
        bias = (2 * self.bias_log_sd).exp() if self.bias is not None else None
        return (2 * self.weight_log_sd).exp(), bias

    def _drawn(self, mean: Tensor, variance: Tensor) -> Tensor:
        # Where all inputs are 0 the root would have no gradient.
        return mean + (variance + 1e-12).sqrt() * torch.randn_like(mean)


class _NoisyLinear(NoisyLayer, nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        mean = super().forward(input)
        if not self.training:
            return mean
        return self._drawn(mean, functional.linear(input.square(), *self._variances()))


class _NoisyConv(NoisyLayer, nn.modules.conv._ConvNd):
    def forward(self, input: Tensor) -> Tensor:
        mean = super().forward(input)
        if not self.training:
            return mean
        variance = self._conv_forward(input.square(), *self._variances())  # type: ignore[operator]
        return self._drawn(mean, variance)


class _NoisyConv1d(_NoisyConv, nn.Conv1d):
    pass


class _NoisyConv2d(_NoisyConv, nn.Conv2d):
    pass


class _NoisyConv3d(_NoisyConv, nn.Conv3d):
    pass


_NOISY: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: _NoisyLinear,
    nn.Conv1d: _NoisyConv1d,
    nn.Conv2d: _NoisyConv2d,
    nn.Conv3d: _NoisyConv3d,
}
_PLAIN = {noisy: plain for plain, noisy in _NOISY.items()}


def take_means(network: nn.Module) -> None:
    """Make layers with posteriors plain ones again, with the means as weights, in place."""
    for layer in network.modules():
        if isinstance(layer, NoisyLayer):
            for name in ("weight_log_sd", "bias_log_sd"):
                layer._parameters.pop(name, None)
            plain: Any = _PLAIN[type(layer)]
            layer.__class__ = plain
