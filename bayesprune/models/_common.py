"""What the model families share: checking of widths and weight initialization."""

from collections.abc import Sequence

from torch import nn

from bayesprune.errors import ConfigError


def checked_widths(field: str, widths: Sequence[int], count: int) -> tuple[int, ...]:
    """Return `widths` as a tuple of `count` positive integers or raise `ConfigError`."""
    if len(widths) != count or any(width < 1 for width in widths):
        raise ConfigError(f"{field}: expected {count} positive integers, got {list(widths)}")
    return tuple(widths)


def he_init(network: nn.Module) -> None:
    """Draw the convolution weights from N(0, 2 / fan-out) (He et al., ICCV 2015)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
