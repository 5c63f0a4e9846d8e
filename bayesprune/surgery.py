"""Remove channels for good: a new, smaller network from a plan."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bayesprune._modes import evaluating
from bayesprune.batches import as_arguments
from bayesprune.errors import PlanError
from bayesprune.gating import GatedNetwork
from bayesprune.groups import ChannelGroup, ChannelGroups, tensors_in, trace_groups
from bayesprune.layers.attention import fit_heads
from bayesprune.layers.select_features import SelectFeatures
from bayesprune.plan import Kept, PruningPlan


def remove_channels(
    network: nn.Module,
    plan: PruningPlan,
    example_input: Tensor | tuple[Any, ...],
    *,
    groups: ChannelGroups | None = None,
) -> nn.Module:
    """Return a copy of `network` without the channels that `plan` does not keep.

    A removed channel takes its filter, its bias and norm entries and what the next layers read from
    it. The copy computes what `network` computes when the removed channels are set to zero where
    the next layers read them.

    Parameters
    ----------
    network : nn.Module
        Left untouched, its mode and the random number generators included.
    plan : PruningPlan
        Made for a network with these groups.
    example_input : Tensor or tuple
        What the network is called with; used to trace it and to try the result once.
    groups : ChannelGroups, optional
        From `trace_groups` of this network, for a network that takes an `ignore` there; it is not
        traced again.

    Returns
    -------
    nn.Module
        Of the same class, with the same module names.

    Raises
    ------
    PlanError
        If the plan or the groups do not fit the network, or the smaller network does not run or
        computes something else (a size written into its `forward`, for instance).
    TraceError
        If the network cannot be traced.

    Examples
    --------
    >>> import torch
    >>> import bayesprune as bp
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> plan = bp.PruningPlan(kept={"0": [1, 4]}, sizes={"0": 6})
    >>> small = bp.remove_channels(network, plan, torch.zeros(1, 4))
    >>> small[0]
    Linear(in_features=4, out_features=2, bias=True)
    >>> small[2]
    Linear(in_features=2, out_features=3, bias=True)
    >>> torch.equal(small[0].weight, network[0].weight[[1, 4]])
    True
    """
    if groups is None:
        groups = trace_groups(network, example_input)
    else:
        groups.check(network)
    plan.check(groups)
    small = _smaller(network, groups, plan.kept)
    trouble = _trouble(network, small, groups, plan, example_input)
    if trouble is None:
        return small
    guilty = []
    for name, kept in plan.kept.items():
        alone = PruningPlan({name: kept}, {name: plan.sizes[name]})
        attempt = _smaller(network, groups, alone.kept)
        if _trouble(network, attempt, groups, alone, example_input):
            guilty.append(name)
    for name, kept in plan.kept.items():
        if bare := _without_units(groups[name], kept):
            raise PlanError(
                f"{name}: of {bare} no channel would be left; keep a unit of each layer that "
                "produces the group, by minimum or protect"
            )
    raise PlanError(
        f"{type(network).__name__}: the network without the removed channels {trouble}. Keep all "
        f"channels of {', '.join(guilty) or 'some groups'}, for example by ignore=[...] when "
        "tracing: is their number written into the forward function?"
    )


def _without_units(group: ChannelGroup, kept: Sequence[int]) -> str | None:
    """A producer all of whose channels belong to units that go."""
    for slice_ in group.slices:
        owned = set(slice_.units.tolist())
        if slice_.role == "producer" and -1 not in owned and owned.isdisjoint(kept):
            return slice_.module
    return None


def _smaller(network: nn.Module, groups: ChannelGroups, kept: Kept) -> nn.Module:
    """A copy without the other channels, as it comes out of the cut: not tried yet."""
    network = copy.deepcopy(network)
    keep: dict[tuple[str, int], Tensor] = {}
    for name, units in kept.items():
        group = groups[name]
        alive = torch.zeros(group.size + 1, dtype=torch.bool)
        alive[units] = True
        alive[-1] = True  # entries of no unit have index -1 and stay
        for slice_ in group.slices:
            key = (slice_.tensor, slice_.axis)
            mask = alive[slice_.units]
            keep[key] = keep[key] & mask if key in keep else mask

    tensors = dict(network.named_parameters(remove_duplicate=False))
    tensors |= dict(network.named_buffers(remove_duplicate=False))
    shared: dict[int, list[str]] = {}
    for path, tensor in tensors.items():
        shared.setdefault(id(tensor), []).append(path)
    for path in {tensor for tensor, _ in keep}:
        old = tensors[path]
        new = old.detach()
        for axis in range(old.ndim):
            if (path, axis) in keep:
                new = new.index_select(axis, keep[path, axis].nonzero()[:, 0].to(new.device))
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new.clone(), requires_grad=old.requires_grad)
        for alias in shared[id(old)]:
            owner, _, attribute = alias.rpartition(".")
            setattr(network.get_submodule(owner), attribute, new)
    for module in network.modules():
        resize(module)
    return network


def resize(module: nn.Module) -> None:
    """Bring the sizes that a layer notes about itself in line with its tensors."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.conv._ConvNd):
        first, second = module.weight.shape[:2]
        old_in = module.in_channels // module.groups
        old_out = module.out_channels // module.groups
        if module.groups > 1:  # whole blocks leave
            module.groups = first // (old_in if module.transposed else old_out)
        if module.transposed:
            module.in_channels, module.out_channels = first, second * module.groups
        else:
            module.out_channels, module.in_channels = first, second * module.groups
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        for tensor in (module.weight, module.running_mean):
            if tensor is not None:
                module.num_features = len(tensor)
    elif isinstance(module, nn.GroupNorm) and module.weight is not None:
        per_block = module.num_channels // module.num_groups
        blocks = module.num_groups
        module.num_channels = len(module.weight)
        module.num_groups = module.num_channels // per_block if blocks > 1 else 1
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm) and module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    elif isinstance(module, SelectFeatures):
        module.renumber()
    else:
        fit_heads(module)


def _trouble(
    network: nn.Module,
    small: nn.Module,
    groups: ChannelGroups,
    plan: PruningPlan,
    example_input: Tensor | tuple[Any, ...],
) -> str | None:
    """What the smaller network does wrong on the example, measured by the masked one, or None."""
    inputs = as_arguments(example_input)
    norms = [m for m in small.modules() if isinstance(m, nn.modules.instancenorm._InstanceNorm)]
    handles = [norm.register_forward_pre_hook(_note_features) for norm in norms]
    try:
        with evaluating(small):
            found = tensors_in(small(*inputs))
    except Exception as error:
        return f"does not run ({error})"
    finally:
        for handle in handles:
            handle.remove()
    device = next(network.parameters()).device
    masks = {name: mask.to(device) for name, mask in plan.masks().items()}
    masked = GatedNetwork(network, groups, masks)
    with evaluating(masked):
        expected = tensors_in(masked(inputs, masks))
    shapes, wanted = ([tuple(t.shape) for t in out] for out in (found, expected))
    if shapes != wanted:
        return f"puts out {shapes} instead of {wanted}"
    if all(groups[name].exact for name in plan.kept):
        for a, b in zip(found, expected, strict=True):
            if b.is_floating_point() and b.numel():
                # Sums in another order differ a little, on some devices as much as 0.1%.
                eps = torch.finfo(b.dtype).eps
                if (a - b).abs().max() > max(0.01, 10 * eps) * b.abs().max() + eps:
                    return "does not compute what it computes with these channels set to zero"
    return None


def _note_features(norm: Any, args: tuple[Tensor, ...]) -> None:
    """An instance normalization without parameters has nothing else to read its size from."""
    norm.num_features = args[0].shape[1]
