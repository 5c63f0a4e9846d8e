"""How much memory a network takes, in the measures of the debiased elastic group lasso."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bayesprune._modes import evaluating
from bayesprune.batches import as_arguments
from bayesprune.groups import tensors_in

_BYTES = 4  # of a number in single precision


@dataclass(frozen=True)
class Footprint:
    """Memory of a network in bytes, with 4 bytes per number.

    The names are those of Oyedotun et al. (WACV 2020); the definitions are our reading of them,
    since the paper's text was not found.

    Attributes
    ----------
    cmf : int
        Computational memory footprint: parameters, and what the layers put out for one input.
    mms : int
        Memory for model storage: parameters.
    """

    cmf: int
    mms: int


def footprint(network: nn.Module, example_input: Tensor | tuple[Any, ...]) -> Footprint:
    """Measure the memory of a network.

    Parameters
    ----------
    network : nn.Module
        Run once in evaluation mode and left as it was.
    example_input : Tensor or tuple
        What it is called with; numbers are per example of its batch.

    Returns
    -------
    Footprint
        Layers are modules that hold no other module, operations between them are not counted.
    """
    inputs = as_arguments(example_input)
    sizes: list[int] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        sizes.append(sum(tensor.numel() for tensor in tensors_in(output)))

    layers = [module for module in network.modules() if not any(True for _ in module.children())]
    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        with evaluating(network):
            network(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    activations = sum(sizes) // len(tensors_in(inputs)[0])
    return Footprint(_BYTES * (parameters + activations), _BYTES * parameters)
