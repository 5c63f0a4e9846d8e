"""How precisely the weights of a network need to be stored, by their posterior."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import torch

from bayesprune.errors import ConfigError
from bayesprune.gating import Gated
from bayesprune.network import SwitchedNetwork
from bayesprune.weights import NoisyLayer

SIGNIFICAND = 23
"""Bits of the significand of a 32-bit float."""


def bit_precision(switched: SwitchedNetwork) -> pd.DataFrame:
    r"""How many bits the weights of each layer need, from their posterior variances.

    A weight :math:`w = z \tilde w` of gate and Gaussian weight has variance :math:`\mu_z^2
    \sigma_w^2 + \sigma_z^2 \mu_w^2 + \sigma_z^2 \sigma_w^2`. The significand has as many bits t as
    satisfy :math:`2 \mathrm{Var} w < 2^{-t}`, averaged over the layer and rounded up.

    Parameters
    ----------
    switched : SwitchedNetwork
        Fitted, with a `weight_posterior`.

    Returns
    -------
    DataFrame
        One row per layer: ``layer``, ``significand``, ``exponent`` and ``bits`` in all, sign
        included.

    Raises
    ------
    ConfigError
        If the weights have no posterior.

    References
    ----------
    Louizos, Ullrich and Welling, NeurIPS 2017, section 4.3; the rule is that of the authors' code,
    which compares the variance, not the standard deviation.
    """
    if switched.weight_posterior is None:
        raise ConfigError("bit_precision: the weights have no posterior (weight_posterior=...)")
    first, second = {}, {}
    for name, switch in switched.guide.items():
        first[name] = switch.mean().double()
        second[name] = first[name].square() + switch.sd().double().square()
    rows = []
    for path, layer in switched.network.network.named_modules():
        gated: Any = layer if isinstance(layer, Gated) else None
        noisy: Any = gated.module if gated is not None else layer
        if not isinstance(noisy, NoisyLayer) or path.endswith(".module"):
            continue
        weight: Any = noisy.weight
        mean, sd = weight.detach().double(), noisy.weight_log_sd.detach().double().exp()
        # Gates multiply the input, along the second axis of these weights.
        along = [1, -1, *[1] * (mean.ndim - 2)]
        gate = gated.scale(first).reshape(along) if gated is not None else 1.0
        power = gated.scale(second).reshape(along) if gated is not None else 1.0
        variance = power * (mean.square() + sd.square()) - (gate * mean).square()
        powers = 2.0 ** -torch.arange(1, SIGNIFICAND + 1, dtype=torch.double)
        bits = (2 * variance[..., None] < powers.to(variance)).sum(-1).double().mean()
        largest = (gate * mean).abs().max().clamp_min(2.0**-126).log2().abs()
        significand = math.ceil(bits.item())
        exponent = math.ceil(math.log2(largest.item() + 1) + 1)
        rows.append((path, significand, exponent, significand + exponent + 1))
    return pd.DataFrame(rows, columns=["layer", "significand", "exponent", "bits"])
