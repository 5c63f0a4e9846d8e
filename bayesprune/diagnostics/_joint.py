"""The joint density of data and latent variables of a switched network with fixed weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from bayesprune.batches import Batch, checked_batch, on_device
from bayesprune.errors import ConfigError, DataError
from bayesprune.network import SwitchedNetwork

Latents = Mapping[str, Mapping[str, Tensor]]
"""Values of the sites of each group's switch; leading dimensions are draws."""


def check_posterior(switched: SwitchedNetwork, what: str) -> None:
    """Raise ConfigError unless the switches have a posterior density, which the guide is to be."""
    guide = switched.guide
    improper = [
        f"{name} ({type(switch).__name__})"
        for name, switch in guide.items()
        if not switch.has_prior
    ]
    if improper:
        raise ConfigError(
            f"{what}: expected priors that are probability distributions; improper, so that there "
            f"is no posterior to compare with: {', '.join(improper)}"
        )
    if switched.weight_posterior is not None:
        raise ConfigError(f"{what}: expected fixed weights, got weight_posterior")
    tempered = {name: w for name, w in guide.kl_weights.items() if w != 1}
    if tempered:
        raise ConfigError(
            f"{what}: expected kl_weight 1, got {tempered}: such a guide approximates another "
            "distribution than the posterior"
        )


def check_density(switched: SwitchedNetwork, what: str) -> None:
    """`check_posterior`, and ConfigError where a factor relaxes a prior on single points."""
    check_posterior(switched, what)
    relaxed = [
        f"{name} ({type(switch).__name__})"
        for name, switch in switched.guide.items()
        if not switch.has_density
    ]
    if relaxed:
        raise ConfigError(
            f"{what}: expected factors over the values that the prior allows; these relax a prior "
            f"on single points, so that their densities do not compare: {', '.join(relaxed)}"
        )


def gates_of(switched: SwitchedNetwork, values: Latents) -> dict[str, Tensor]:
    """The gates that values of the sites make, shape ``(..., C)``."""
    return {name: switch.gate(values[name]) for name, switch in switched.guide.items()}


def device_of(switched: SwitchedNetwork) -> torch.device:
    """Where the switches are."""
    return next(switched.guide.parameters()).device


def whole(switched: SwitchedNetwork, loader: Iterable[Any], what: str) -> Iterator[Batch]:
    """Batches on the device; raises DataError unless they are the data that the model is of."""
    seen, device = 0, device_of(switched)
    for index, batch in enumerate(loader):
        inputs, targets = on_device(checked_batch(batch, index), device)
        seen += len(targets)
        yield inputs, targets
    if seen != switched.num_data:
        raise DataError(
            f"{what}: expected all {switched.num_data} examples that the model is of (num_data), "
            f"got {seen}"
        )


def log_likelihood(switched: SwitchedNetwork, gates: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Log likelihood of a batch with these gates, in nats: a scalar of double precision."""
    return switched.log_likelihood(*batch, gates).double().sum()
