"""Pruned networks on disk: safetensors with the plan as JSON, never pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from bayesprune.checkpoint import write_bytes_atomic
from bayesprune.errors import CheckpointError, PlanError, TraceError
from bayesprune.plan import PruningPlan
from bayesprune.surgery import remove_channels, resize

_FORMAT = "bayesprune-pruned-1"


def save_pruned(path: str | os.PathLike[str], network: nn.Module, plan: PruningPlan) -> None:
    """Write the tensors of a pruned network and the plan that made it, atomically.

    Parameters
    ----------
    path : path
        A ``.safetensors`` file.
    network : nn.Module
        From `remove_channels`, of a network that may have lost layers by `remove_layers` before.
    plan : PruningPlan
    """
    # Shared tensors are written once per name: a file must load into any network of the class.
    tensors = {n: t.detach().cpu().clone().contiguous() for n, t in _tensors(network).items()}
    metadata = {
        "format": _FORMAT,
        "plan": plan.to_json(),
        "features": json.dumps({n: m.num_features for n, m in _bare_norms(network).items()}),
        "identities": json.dumps(_identities(network)),
    }
    write_bytes_atomic(Path(path), save(tensors, metadata=metadata))


def load_pruned(
    path: str | os.PathLike[str],
    fresh_network: nn.Module,
    example_input: Tensor | tuple[Any, ...] | None = None,
) -> nn.Module:
    """Shrink a fresh network of the original class to a saved one and load its tensors, in place.

    Parameters
    ----------
    path : path
        From `save_pruned`.
    fresh_network : nn.Module
        Of the original class and size, with any weights.
    example_input : Tensor or tuple, optional
        What the network is called with. For files of uncertain origin: the fresh network is traced,
        and each tensor must have exactly the shape that the plan leaves. Otherwise each layer is
        checked by itself, and the producer of each group against the plan.

    Returns
    -------
    nn.Module
        `fresh_network` itself.

    Raises
    ------
    CheckpointError
        If the file is missing, truncated or foreign, or its tensors are not those of a pruned
        network of this class; the network is then unchanged.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> import bayesprune as bp
    >>> def fresh():
    ...     return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 3))
    >>> network, plan = fresh(), bp.PruningPlan(kept={"0": [1, 4]}, sizes={"0": 6})
    >>> small = bp.remove_channels(network, plan, torch.zeros(1, 4))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     bp.save_pruned(f"{folder}/small.safetensors", small, plan)
    ...     loaded = bp.load_pruned(f"{folder}/small.safetensors", fresh())
    >>> torch.equal(loaded(torch.ones(1, 4)), small(torch.ones(1, 4)))
    True
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: expected a pruned network: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path}: expected format {_FORMAT}, got {metadata.get('format')}: was it written by "
            "save_pruned?"
        )
    layers: dict[str, nn.Module] = {}
    try:
        plan = PruningPlan.from_json(metadata.get("plan", ""))
        # Files from before layers could be removed name none.
        layers = _removed(metadata.get("identities", "[]"), fresh_network)
        for name in layers:
            fresh_network.set_submodule(name, nn.Identity())
        features = _features(metadata.get("features", "{}"), fresh_network)
        _check_names(tensors, fresh_network)
        _check_layers(tensors, fresh_network)
        _check_plan(plan, tensors, fresh_network)
        if example_input is not None:
            _check_shapes(tensors, remove_channels(fresh_network, plan, example_input))
    except (CheckpointError, PlanError, TraceError) as error:
        for name, layer in layers.items():
            fresh_network.set_submodule(name, layer)
        raise CheckpointError(
            f"{path}: not a pruned {type(fresh_network).__name__} of this size: {error}"
        ) from error

    slots: dict[int, Tensor] = {}
    touched = set()
    for name, tensor in tensors.items():
        owner, _, attribute = name.rpartition(".")
        module = fresh_network.get_submodule(owner)
        old = getattr(module, attribute)
        if old.shape != tensor.shape:
            new = slots.get(id(old))  # tensors that were shared stay shared
            if new is None:
                new = torch.empty(tensor.shape, dtype=old.dtype, device=old.device)
                if isinstance(old, nn.Parameter):
                    new = nn.Parameter(new, requires_grad=old.requires_grad)
                slots[id(old)] = new
            setattr(module, attribute, new)
            touched.add(module)
    with torch.no_grad():
        for name, tensor in _tensors(fresh_network).items():
            tensor.copy_(tensors[name])
    for module in touched:
        resize(module)
    for name, norm in _bare_norms(fresh_network).items():
        norm.num_features = features[name]
    return fresh_network


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers; buffers that `state_dict` leaves out can be pruned as well."""
    tensors: dict[str, Tensor] = dict(network.named_parameters(remove_duplicate=False))
    return tensors | dict(network.named_buffers(remove_duplicate=False))


def _bare_norms(network: nn.Module) -> dict[str, Any]:
    """Normalizations that note a number of features which no tensor of theirs tells."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, _InstanceNorm) and not module.affine and module.running_mean is None
    }


def _identities(network: nn.Module) -> list[str]:
    """The names of layers that have been removed, or have always been the identity."""
    modules = network.named_modules(remove_duplicate=False)
    return [name for name, module in modules if type(module) is nn.Identity]


def _removed(text: str, network: nn.Module) -> dict[str, nn.Module]:
    """The layers of a network that are to become the identity."""
    modules = dict(network.named_modules(remove_duplicate=False))
    try:
        names = json.loads(text)
        if (
            isinstance(names, list)
            and all(type(name) is str and name and name in modules for name in names)
            and not any(a.startswith(f"{b}.") for a in names for b in names)
        ):
            return {n: modules[n] for n in names if type(modules[n]) is not nn.Identity}
    except json.JSONDecodeError:
        pass
    raise CheckpointError(f"expected names of removed layers, got {text!r:.80}")


def _features(text: str, network: nn.Module) -> dict[str, int]:
    """What was noted of such normalizations."""
    norms = _bare_norms(network)
    try:
        features = json.loads(text)
        if set(features) == set(norms) and all(
            type(features[n]) is int and 0 < features[n] <= m.num_features for n, m in norms.items()
        ):
            return features
    except (json.JSONDecodeError, TypeError):
        pass
    raise CheckpointError(f"expected the features of {[*norms]}, got {text!r:.80}")


def _check_names(tensors: Mapping[str, Tensor], network: nn.Module) -> None:
    """Every tensor is there, not larger than it was; those that are shared are the same."""
    expected = _tensors(network)
    missing, extra = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if missing or extra:
        raise CheckpointError(f"missing {sorted(missing)[:3]}, unexpected {sorted(extra)[:3]}")
    first: dict[int, str] = {}
    for name, whole in expected.items():
        tensor = tensors[name]
        fits = tensor.ndim == whole.ndim and all(
            new <= old for new, old in zip(tensor.shape, whole.shape, strict=True)
        )
        if not fits or tensor.dtype != whole.dtype:
            raise CheckpointError(
                f"{name}: expected at most {whole.dtype} {tuple(whole.shape)}, "
                f"got {tensor.dtype} {tuple(tensor.shape)}"
            )
        alias = first.setdefault(id(whole), name)
        if alias != name and not torch.equal(tensors[alias], tensor):
            raise CheckpointError(f"{name}: expected the tensor of {alias}, which it shares")


def _check_layers(tensors: Mapping[str, Tensor], network: nn.Module) -> None:
    """The tensors of a layer agree on how many channels it has."""
    for name, module in network.named_modules(remove_duplicate=False):
        own = {a: tensors[f"{name}.{a}" if name else a].shape for a in _tensors_of(module)}
        if "weight" not in own and not isinstance(module, _NormBase):
            continue  # nothing to compare, or parametrized
        if isinstance(module, nn.Linear):
            width = own["weight"][:1]
        elif isinstance(module, _ConvNd):
            first, second = own["weight"][:2]
            channels = module.in_channels if module.transposed else module.out_channels
            block = channels // module.groups
            if module.groups > 1 and first % block:
                raise CheckpointError(
                    f"{name}: expected whole blocks of {block} channels, got {first}"
                )
            width = (second * (first // block if module.groups > 1 else 1),)
            width = width if module.transposed else (first,)
        elif isinstance(module, _NormBase | nn.LayerNorm):
            width = next((shape for shape in own.values() if shape), ())  # not a mere counter
        elif isinstance(module, nn.GroupNorm):
            width = own["weight"]
            block = module.num_channels // module.num_groups
            if module.num_groups > 1 and width[0] % block:
                raise CheckpointError(
                    f"{name}: expected whole blocks of {block} channels, got {width[0]}"
                )
        else:
            continue
        for attribute in ("weight", "bias", "running_mean", "running_var"):
            shape = own.get(attribute)
            matrix = attribute == "weight" and isinstance(module, nn.Linear | _ConvNd)
            if shape is not None and not matrix and tuple(shape) != tuple(width):
                raise CheckpointError(
                    f"{name}.{attribute}: expected {tuple(width)} as in the rest of the layer, "
                    f"got {tuple(shape)}"
                )


def _tensors_of(module: nn.Module) -> list[str]:
    named = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return [name for name, _ in named]


def _check_plan(plan: PruningPlan, tensors: Mapping[str, Tensor], network: nn.Module) -> None:
    """The layers that groups are named after have as many channels as the plan keeps."""
    modules = dict(network.named_modules(remove_duplicate=False))
    for name, kept in plan.kept.items():
        module = modules.get(name)
        if module is None:
            raise CheckpointError(f"{name}: the plan prunes it, the network does not have it")
        if not isinstance(module, nn.Linear | _ConvNd) or f"{name}.weight" not in tensors:
            continue
        axis = int(isinstance(module, _ConvNd) and module.transposed)
        width = tensors[f"{name}.weight"].shape[axis]
        # Where a unit is several channels, or some channels are in no group, sizes differ.
        if plan.sizes[name] == module.weight.shape[axis] and len(kept) != width:
            raise CheckpointError(
                f"{name}.weight: expected {len(kept)} channels as in the plan, got {width}"
            )


def _check_shapes(tensors: Mapping[str, Tensor], small: nn.Module) -> None:
    for name, tensor in _tensors(small).items():
        if tensor.shape != tensors[name].shape:
            raise CheckpointError(
                f"{name}: expected {tuple(tensor.shape)} as the plan leaves it, "
                f"got {tuple(tensors[name].shape)}"
            )
