"""Whole layers: which can go, how much each one matters, and their removal."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor, nn

from bayesprune._modes import evaluating
from bayesprune.batches import as_arguments, checked_batch, on_device
from bayesprune.errors import DataError, PlanError, TraceError
from bayesprune.groups import ChannelGroups, tensors_in, trace_groups
from bayesprune.selection import ChannelScores

Layers = dict[str, tuple[str, ...]]
"""Layers that can be removed by name, each with the modules that become the identity."""

_Norm = nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm


def removable_layers(network: nn.Module, example_input: Tensor | tuple[Any, ...]) -> Layers:
    """Find the layers that can become the identity.

    These are residual blocks with an identity shortcut: modules that return their input when all
    their parameters are zero. Outside such blocks, they are convolutions and linear layers whose
    output has the shape of their input and is not added to another's, each together with the
    normalisation and the activation that follow it as modules of their own.

    Modules that are called more than once, or with more than one tensor, cannot go.

    Parameters
    ----------
    network : nn.Module
        Run once in evaluation mode and left as it was.
    example_input : Tensor or tuple
        What the network is called with.

    Returns
    -------
    dict of str to tuple of str
        In the order of execution. Empty if there are none.
    """
    calls, outputs = _trace(network, example_input)
    modules = dict(network.named_modules())
    same = {
        name: found
        for name, found in calls.items()
        if name and found.input is not None and found.input.shape == found.output.shape
    }
    blocks = [n for n, found in same.items() if _has_shortcut(modules[n], found)]
    innermost = [n for n in blocks if not any(other.startswith(f"{n}.") for other in blocks)]
    alone = _sole_producers(network, example_input)

    def follower(name: str, fits: Callable[[nn.Module], bool]) -> list[str]:
        first = outputs[name][:1]
        return [n for n in first if n in same and fits(modules[n])]

    layers = {}
    for name in same:
        if name in innermost:
            layers[name] = (name,)
        elif name in alone and not name.startswith(tuple(f"{block}." for block in blocks)):
            chain = [name]
            chain += follower(chain[-1], lambda module: isinstance(module, _Norm))
            chain += follower(chain[-1], _is_activation)
            layers[name] = tuple(chain)
    return layers


def _sole_producers(network: nn.Module, example_input: Tensor | tuple[Any, ...]) -> set[str]:
    """Layers that make all channels of a group."""
    try:
        groups = trace_groups(network, example_input)
    except TraceError:  # what cannot be followed may be added to anything
        return set()
    made = [group.modules("producer") for group in groups.values()]
    alone = {producers[0] for producers in made if len(producers) == 1}
    # A selection of features computes nothing, so nothing is saved by removing it.
    return {name for name in alone if any(True for _ in network.get_submodule(name).parameters())}


class _Call(NamedTuple):
    input: Tensor | None  # None unless the module was called once, with one tensor, for one tensor
    output: Any


def _trace(
    network: nn.Module, example_input: Tensor | tuple[Any, ...]
) -> tuple[dict[str, _Call], dict[str, list[str]]]:
    """The calls of all modules in the order they end, and which leaf modules read which output."""
    calls: dict[str, _Call] = {}
    readers: dict[int, list[str]] = {}
    kept: list[Tensor] = []  # so that no identity is given twice

    def note(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        plain = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
        single = plain and isinstance(output, Tensor) and name not in calls
        # A clone, as later layers may work in place.
        calls[name] = _Call(args[0].clone() if single else None, output)
        if plain and not any(True for _ in module.children()):
            readers.setdefault(id(args[0]), []).append(name)
            kept.append(args[0])

    handles = [
        module.register_forward_hook(partial(note, name), with_kwargs=True)
        for name, module in network.named_modules()
    ]
    inputs = as_arguments(example_input)
    try:
        with evaluating(network):
            network(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    found = {name: readers.get(id(call.output), []) for name, call in calls.items()}
    return calls, {name: [n for n in names if n != name] for name, names in found.items()}


def _has_shortcut(module: nn.Module, call: _Call) -> bool:
    """Whether a module returns its input when its parameters are zero."""
    if call.input is None or not call.input.any() or not any(True for _ in module.parameters()):
        return False
    zero = copy.deepcopy(module)
    with evaluating(zero):
        for parameter in zero.parameters():
            parameter.zero_()
        return torch.equal(zero(call.input.clone()), call.input)


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__ == "torch.nn.modules.activation" and not isinstance(
        module, nn.MultiheadAttention
    )


def remove_layers(
    network: nn.Module, names: Iterable[str], example_input: Tensor | tuple[Any, ...]
) -> nn.Module:
    """Return a copy of `network` in which layers are the identity.

    Parameters
    ----------
    network : nn.Module
        Left untouched.
    names : iterable of str
        Of `removable_layers`.
    example_input : Tensor or tuple
        What the network is called with.

    Returns
    -------
    nn.Module
        Of the same class, with the same module names. `save_pruned` and `load_pruned` know it by
        its `nn.Identity` modules. Its channel groups are to be traced again.

    Raises
    ------
    PlanError
        If a layer cannot be removed.
    """
    layers, names = removable_layers(network, example_input), list(names)
    wrong = [name for name in names if name not in layers]
    if wrong:
        raise PlanError(
            f"{', '.join(wrong)}: expected layers that can become the identity "
            f"({', '.join(layers) or 'there are none'})"
        )
    small = copy.deepcopy(network)
    modules = dict(small.named_modules(remove_duplicate=False))
    for gone in [modules[path] for name in names for path in layers[name]]:
        for alias in [alias for alias, module in modules.items() if module is gone]:
            small.set_submodule(alias, nn.Identity().train(network.training))
    inputs = as_arguments(example_input)
    shapes = []
    for either in (network, small):
        with evaluating(either):
            shapes.append([tuple(t.shape) for t in tensors_in(either(*inputs))])
    if shapes[0] != shapes[1]:
        raise PlanError(f"{', '.join(names)}: without them {shapes[0]} becomes {shapes[1]}")
    return small


# importance ---------------------------------------------------------------------------------------


def layer_scores(scores: ChannelScores, groups: ChannelGroups, layers: Layers) -> dict[str, float]:
    """The mean score of the units that a layer makes, from a criterion or posterior.

    Its scores must be comparable between groups: those that are normalised within each, as of
    `Taylor2016` or a simplex switch, say little about layers. Units count whose producers all lie
    within the layer: channels of a residual stream belong to no single block.

    Parameters
    ----------
    scores : ChannelScores
    groups : ChannelGroups
    layers : dict
        From `removable_layers`.

    Returns
    -------
    dict of str to float
        Higher = keep.

    Raises
    ------
    PlanError
        If a layer makes no unit that has a score.

    References
    ----------
    Elkerdawy et al., "To Filter Prune, or to Layer Prune, That Is The Question", ACCV 2020.
    """
    means = {}
    for name, paths in layers.items():
        inside = tuple(f"{path}." for path in paths)
        values = [
            scores.values[group]
            for group in scores.values
            if all(f"{made}.".startswith(inside) for made in groups[group].modules("producer"))
        ]
        if not values:
            raise PlanError(f"{name}: no unit made by this layer alone has a score")
        means[name] = float(torch.cat(values).mean())
    return means


def imprinting(
    network: nn.Module,
    layers: Layers,
    train_loader: Iterable[Any],
    held_out: Iterable[Any],
) -> dict[str, float]:
    """How much more can be told from what a layer puts out than from what it reads.

    What a layer puts out is pooled to ``d x d`` with ``d = round(sqrt(512 / C))`` and flattened;
    the weight of a class is the mean of these embeddings, with Euclidean norm 1, and the class with
    the largest inner product is predicted. The importance of a layer is its accuracy minus that of
    what enters it. Nothing is trained.

    Parameters
    ----------
    network : nn.Module
        A classifier, left as it was.
    layers : dict
        From `removable_layers`; what they read and put out must have shape ``(N, C, …)``.
    train_loader, held_out : iterable
        Batches ``(inputs, targets)``, each read once: class means are taken on the one, accuracies
        on the other.

    Returns
    -------
    dict of str to float
        In [-1, 1], higher = keep.

    Raises
    ------
    DataError
        If a loader is empty.

    References
    ----------
    Elkerdawy et al., ACCV 2020, after Qi et al., "Low-Shot Learning with Imprinted Weights",
    CVPR 2018.
    """
    sums: dict[tuple[str, str], Tensor] = {}
    seen: dict[tuple[str, str], Tensor] = {}

    def entering(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[name, "in"] = _embedding(args[0])

    def leaving(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        seen[name, "out"] = _embedding(output)

    handles = []
    for name, paths in layers.items():
        first, last = network.get_submodule(paths[0]), network.get_submodule(paths[-1])
        handles.append(first.register_forward_pre_hook(partial(entering, name)))
        handles.append(last.register_forward_hook(partial(leaving, name)))
    device = next(network.parameters()).device
    right, total, learned = dict.fromkeys(layers, 0), 0, False
    try:
        with evaluating(network):
            for targets, output in _run(network, train_loader, device):
                member = F.one_hot(targets, output.shape[1]).float().T
                for place, embedded in seen.items():
                    sums[place] = sums.get(place, 0) + member @ embedded
                learned = True
            # The number of a class's examples does not matter to the direction of their mean.
            weights = {place: F.normalize(total) for place, total in sums.items()}
            for targets, _ in _run(network, held_out if learned else (), device):
                for (name, side), embedded in seen.items():
                    predicted = (embedded @ weights[name, side].T).argmax(1)
                    correct = int((predicted == targets).sum())
                    right[name] += correct if side == "out" else -correct
                total += len(targets)
    finally:
        for handle in handles:
            handle.remove()
    if not total:
        raise DataError(f"imprinting: {'held_out' if learned else 'train_loader'} is empty")
    return {name: count / total for name, count in right.items()}


def _run(
    network: nn.Module, loader: Iterable[Any], device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """The targets of each batch and what the network makes of its inputs."""
    for index, batch in enumerate(loader):
        inputs, targets = on_device(checked_batch(batch, index), device)
        yield targets, network(*as_arguments(inputs))


def _embedding(output: Tensor) -> Tensor:
    """An output ``(N, C, …)`` as vectors of about 512 numbers, shape ``(N, C * d * …)``."""
    spatial = output.ndim - 2
    if spatial:
        size = max(1, round((512 / output.shape[1]) ** 0.5))
        pools = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
        output = pools[spatial - 1](output, size)
    return output.flatten(1).float()


def average_ranks(rankings: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The ensemble of several importances of the same layers: the mean of their ranks.

    Parameters
    ----------
    rankings : sequence of mapping of str to float
        Higher = keep.

    Returns
    -------
    dict of str to float
        Between 1 and the number of layers; equal values share the mean of their ranks.

    Raises
    ------
    PlanError
        If there is none, or they are not of the same layers.
    """
    if not rankings or any(set(ranking) != set(rankings[0]) for ranking in rankings):
        raise PlanError("average_ranks: expected one or more importances of the same layers")
    names = list(rankings[0])
    ranks = np.mean([rankdata([ranking[name] for name in names]) for ranking in rankings], 0)
    return dict(zip(names, ranks.tolist(), strict=True))


def leaving_order(
    network: nn.Module,
    importance: Callable[[nn.Module, Layers], Mapping[str, float]],
    example_input: Tensor | tuple[Any, ...],
    count: int | None = None,
) -> list[str]:
    """The order in which layers leave when the rest are scored again after each removal.

    Parameters
    ----------
    network : nn.Module
        Left untouched.
    importance : callable
        ``(network, layers)`` to the importance of each layer, higher = keep; called before every
        removal with the network that is left.
    example_input : Tensor or tuple
    count : int, optional
        How many layers leave; all of them by default.

    Returns
    -------
    list of str
        The first to leave first.
    """
    order: list[str] = []
    while layers := removable_layers(network, example_input):
        if len(order) == count:
            break
        found = importance(network, layers)
        order.append(min(layers, key=lambda name: found[name]))
        network = remove_layers(network, order[-1:], example_input)
    return order
