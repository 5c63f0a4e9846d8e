"""Pruned networks on disk: safetensors with the plan as JSON, never pickle."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from bayesprune.checkpoint import write_bytes_atomic
from bayesprune.errors import CheckpointError
from bayesprune.plan import PruningPlan
from bayesprune.surgery import resize

_FORMAT = "bayesprune-pruned-1"


def save_pruned(path: str | os.PathLike[str], network: nn.Module, plan: PruningPlan) -> None:
    """Write the tensors of a pruned network and the plan that made it, atomically.

    Parameters
    ----------
    path : path
        A ``.safetensors`` file.
    network : nn.Module
        From `remove_channels`.
    plan : PruningPlan
    """
    # Shared tensors are written once per name: a file must load into any network of the class.
    tensors = {n: t.detach().cpu().clone().contiguous() for n, t in network.state_dict().items()}
    content = save(tensors, metadata={"format": _FORMAT, "plan": plan.to_json()})
    write_bytes_atomic(Path(path), content)


def load_pruned(path: str | os.PathLike[str], fresh_network: nn.Module) -> nn.Module:
    """Shrink a fresh network of the original class to a saved one and load its tensors, in place.

    Parameters
    ----------
    path : path
        From `save_pruned`.
    fresh_network : nn.Module
        Of the original class and size, with any weights.

    Returns
    -------
    nn.Module
        `fresh_network` itself.

    Raises
    ------
    CheckpointError
        If the file is missing, truncated or foreign, or its tensors are not those of a pruned
        network of this class; the network is then unchanged.
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
    expected = fresh_network.state_dict()
    missing, extra = set(expected) - set(tensors), set(tensors) - set(expected)
    if missing or extra:
        raise CheckpointError(
            f"{path}: not for {type(fresh_network).__name__}: missing {sorted(missing)[:3]}, "
            f"unexpected {sorted(extra)[:3]}"
        )
    for name, tensor in tensors.items():
        whole = expected[name]
        fits = tensor.ndim == whole.ndim and all(
            new <= old for new, old in zip(tensor.shape, whole.shape, strict=True)
        )
        if not fits or tensor.dtype != whole.dtype:
            raise CheckpointError(
                f"{path}: {name}: expected at most {whole.dtype} {tuple(whole.shape)}, "
                f"got {tensor.dtype} {tuple(tensor.shape)}"
            )
    slots: dict[int, torch.Tensor] = {}
    for path_, tensor in tensors.items():
        owner, _, attribute = path_.rpartition(".")
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
    for module in fresh_network.modules():
        resize(module)
    fresh_network.load_state_dict(tensors)
    return fresh_network
