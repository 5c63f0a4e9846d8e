"""The networks of the published comparisons, and a way to load any other by name."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from bayesprune._describe import imported
from bayesprune.errors import BayespruneError, ConfigError
from bayesprune.models.digits import DigitsNet
from bayesprune.models.lenet import LeNet5, LeNet300_100
from bayesprune.models.resnet import ResNet
from bayesprune.models.vgg import VGG
from bayesprune.models.wide_resnet import WideResNet

__all__ = [
    "VGG",
    "DigitsNet",
    "LeNet5",
    "LeNet300_100",
    "ResNet",
    "WideResNet",
    "create",
    "input_shape",
    "load",
    "names",
]

_MODELS: dict[str, tuple[Callable[..., nn.Module], tuple[int, int, int]]] = {
    "digits": (DigitsNet, (1, 8, 8)),
    "lenet300_100": (LeNet300_100, (1, 28, 28)),
    "lenet5": (LeNet5, (1, 28, 28)),
    "resnet20": (partial(ResNet, depth=20), (3, 32, 32)),
    "resnet32": (partial(ResNet, depth=32), (3, 32, 32)),
    "resnet56": (partial(ResNet, depth=56), (3, 32, 32)),
    "vgg16": (partial(VGG, depth=16), (3, 32, 32)),
    "vgg19": (partial(VGG, depth=19), (3, 32, 32)),
    "wrn28_10": (partial(WideResNet, depth=28, width=10), (3, 32, 32)),
}


def names() -> list[str]:
    """Return the names that `create` knows, sorted."""
    return sorted(_MODELS)


def input_shape(name: str) -> tuple[int, int, int]:
    """Return the (channels, height, width) of one input of a model that `create` knows.

    Raises
    ------
    ConfigError
        If the name is unknown.
    """
    return _known(name)[1]


def create(name: str, **kwargs: Any) -> nn.Module:
    """Build one of the networks of this package with fresh random weights.

    Parameters
    ----------
    name : str
        One of `names()`.
    **kwargs
        Passed to the network's class, for example ``widths=(4, 15, 58)`` for "lenet5".

    Returns
    -------
    nn.Module
        The network, in training mode.

    Raises
    ------
    ConfigError
        If the name or a keyword argument is unknown, or an argument has an unusable value.
    """
    return _build(name, _known(name)[0], kwargs)


def load(spec: str, **kwargs: Any) -> nn.Module:
    """Build the network that a specification names, with fresh random weights.

    Parameters
    ----------
    spec : str
        "bayesprune:NAME" for a network of this package, "torchvision:NAME" for one of torchvision
        (`torchvision.models.get_model` without pretrained weights), or "python.path:factory" for
        a class or function that can be imported and returns an `nn.Module`.
    **kwargs
        Passed to the class or function.

    Returns
    -------
    nn.Module
        The network.

    Raises
    ------
    ConfigError
        If the specification has another form, names nothing that exists, or does not build an
        `nn.Module` from these arguments.
    """
    source, _, name = spec.partition(":")
    if not source or not name:
        raise ConfigError(
            "model: expected 'bayesprune:NAME', 'torchvision:NAME' or 'python.path:factory', "
            f"got {spec!r}"
        )
    if source == "bayesprune":
        return create(name, **kwargs)
    if source == "torchvision":
        return _build(spec, _torchvision_factory(name), kwargs)
    return _build(spec, imported("model", source, name), kwargs)


def _known(name: str) -> tuple[Callable[..., nn.Module], tuple[int, int, int]]:
    if name not in _MODELS:
        raise ConfigError(f"model: expected one of {', '.join(names())}, got {name!r}")
    return _MODELS[name]


def _torchvision_factory(name: str) -> Callable[..., nn.Module]:
    from torchvision.models import get_model_builder  # slow to import, and only needed here

    try:
        return partial(get_model_builder(name), weights=None)
    except ValueError as error:
        raise ConfigError(
            f"model: expected a name from torchvision.models.list_models(), got {name!r}"
        ) from error


def _build(name: str, factory: Callable[..., object], kwargs: dict[str, Any]) -> nn.Module:
    try:
        network = factory(**kwargs)
    except BayespruneError:
        raise
    except Exception as error:  # an unknown argument, or whatever the user's factory does
        raise ConfigError(f"model {name!r}: {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise ConfigError(f"model {name!r}: expected an nn.Module, got {type(network).__name__}")
    return network
