"""Channel groups: which channels of a network live or die together.

The network runs once on an example input while every activation carries an integer *channel id*
per element. Operations that move data move the ids, element-wise operations unite the ids of
their operands, convolutions and linear layers consume the ids of their input and create new ones,
and an operation that is not known freezes the ids that reach it, so that its channels are never
removed. What is united at the end is one unit; units that share a producer form a group. Features
that are selected from channels are units within units: a channel owns what its features own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakTensorKeyDictionary

from bayesprune._describe import html_table
from bayesprune._modes import evaluating, without_fused_attention
from bayesprune.batches import as_arguments
from bayesprune.errors import PlanError, TraceError
from bayesprune.layers.attention import heads_separated
from bayesprune.layers.select_features import SelectFeatures

Role = Literal["producer", "passthrough", "consumer"]
FIXED = 0  # the id of everything that is not a removable channel

_Convolution = nn.modules.conv._ConvNd


@dataclass(frozen=True)
class Slice:
    """The entries of one parameter or buffer that belong to the units of a group.

    Attributes
    ----------
    tensor : str
        Dotted path of the parameter or buffer, for example ``"conv1.weight"``.
    axis : int
        The axis along which units lie.
    units : Tensor
        Shape ``(size of axis,)``, integer: the unit that owns each entry, -1 if none does.
    role : {"producer", "passthrough", "consumer"}
        Whether the layer creates the channels, keeps them apart, or reads them.
    """

    tensor: str
    axis: int
    units: Tensor
    role: Role

    @property
    def module(self) -> str:
        """Dotted path of the module that owns the tensor."""
        return self.tensor.rpartition(".")[0]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that must be kept or removed together, unit by unit.

    Attributes
    ----------
    name : str
        Module path of the first producing layer.
    size : int
        Number of prunable units. Unit `i` is channel `i` of the first producer, or, where a grouped
        convolution or a group normalisation ties channels together, its `i`-th block.
    slices : tuple of Slice
        Everything that leaves the network with a unit.
    exact : bool
        Whether removing a unit equals masking it. False where a normalisation takes its statistics
        over channels.
    within : tuple of str
        Groups whose units hold units of this one: what such a unit owns of this group's leaves with
        it. Channels hold the features that `layers.SelectFeatures` picks from them.
    """

    name: str
    size: int
    slices: tuple[Slice, ...]
    exact: bool = True
    within: tuple[str, ...] = ()

    def modules(self, role: Role) -> list[str]:
        """Paths of the modules that play `role`, each once, in the order of execution."""
        return list(dict.fromkeys(s.module for s in self.slices if s.role == role))

    def __repr__(self) -> str:
        inexact = "" if self.exact else ", inexact"
        return f"ChannelGroup({self.name}: {self.size} units{inexact}, {len(self.slices)} slices)"

    def _repr_html_(self) -> str:
        rows = [(s.tensor, s.axis, int((s.units >= 0).sum()), s.role) for s in self.slices]
        note = "" if self.exact else ", removing a unit is not quite masking it"
        title = f"{self.name}: {self.size} units{note}"
        return html_table(("tensor", "axis", "entries that leave", "role"), rows, title)


@dataclass(frozen=True)
class WeightUse:
    """How often the network multiplies by each entry of a weight, for one input."""

    tensor: str
    positions: int


@dataclass(frozen=True)
class ChannelGroups(Mapping[str, ChannelGroup]):
    """The groups of one network by name, in the order of execution, with what costs need.

    Attributes
    ----------
    groups : dict of str to ChannelGroup
    shapes : dict of str to tuple of int
        Shape of every parameter and buffer that a slice may cut, and of all other parameters.
    parameters : frozenset of str
        Which of `shapes` are parameters.
    uses : tuple of WeightUse
    fixed_macs : int
        Multiply-accumulates of one input that no group takes part in.
    frozen : dict of str to str
        Layers none of whose output channels can be removed, with the reason.
    unit_macs : dict of str to tuple of int
        Multiply-accumulates of one input that each unit of a group takes outside layers: what an
        attention head spends on comparing positions. Groups without any are left out.
    """

    groups: dict[str, ChannelGroup]
    shapes: dict[str, tuple[int, ...]]
    parameters: frozenset[str]
    uses: tuple[WeightUse, ...]
    fixed_macs: int
    frozen: dict[str, str] = field(default_factory=dict)
    unit_macs: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> ChannelGroup:
        if name not in self.groups:
            raise KeyError(f"{name}: no such group; groups: {', '.join(self.groups)}")
        return self.groups[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of prunable units of each group."""
        return {name: group.size for name, group in self.groups.items()}

    def check(self, network: nn.Module) -> None:
        """Raise PlanError unless `network` has every tensor of `shapes`, in that shape."""
        tensors = dict(network.named_parameters(remove_duplicate=False))
        tensors |= dict(network.named_buffers(remove_duplicate=False))
        for name, shape in self.shapes.items():
            found = tuple(tensors[name].shape) if name in tensors else "no such tensor"
            if found != shape:
                raise PlanError(
                    f"{name}: the groups are of another network: expected {shape}, got {found}"
                )

    @cached_property
    def nested(self) -> list[str]:
        """Groups within others or around others, in the order of execution."""
        within = {name for name, group in self.groups.items() if group.within}
        around = {outer for name in within for outer in self.groups[name].within}
        return [name for name in self.groups if name in within | around]

    def readings(self, name: str) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """What layers read of a group, layer by layer.

        Yields
        ------
        tuple of Tensor and dict of str to Tensor
            The unit of each entry along the axis that is read, -1 if none, shape ``(entries,)``;
            and of the groups within or around this one the unit that owns it as well, by name.
        """
        for slice_ in self.groups[name].slices:
            if slice_.role == "consumer":
                others = {
                    other: cut.units
                    for other in self.nested
                    for cut in self.groups[other].slices
                    if other != name and (cut.tensor, cut.axis) == (slice_.tensor, slice_.axis)
                }
                yield slice_.units, others

    def read(self, name: str, kept: Mapping[str, Collection[int]]) -> set[int]:
        """The units of a group that layers read, if the other groups keep the units of `kept`.

        All of them, unless the group is within others, or others within it: features of a removed
        channel are read no more, nor is a channel without features.
        """
        read: set[int] = set()
        for units, others in self.readings(name):
            there = units >= 0
            for other, owned in others.items():
                if other in kept:
                    alive = torch.zeros(self.groups[other].size + 1, dtype=torch.bool)
                    alive[[*kept[other], -1]] = True  # entries of no unit have index -1
                    there = there & alive[owned]
            read.update(units[there].tolist())
        return read

    def _rows(self) -> list[tuple[str, int, str, str]]:
        rows = []
        for name, group in self.groups.items():
            within = f" within {', '.join(group.within)}" if group.within else ""
            producers, consumers = group.modules("producer"), group.modules("consumer")
            rows.append((name, group.size, ", ".join(producers) + within, ", ".join(consumers)))
        return rows

    def __repr__(self) -> str:
        lines = [f"ChannelGroups: {len(self)} groups, {sum(self.sizes.values())} units"]
        for name, size, _, readers in self._rows():
            within = "".join(f", within {outer}" for outer in self.groups[name].within)
            lines.append(f"  {name}: {size} units{within}, read by {readers}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return html_table(("group", "units", "produced by", "read by"), self._rows())


def trace_groups(
    network: nn.Module,
    example_input: Tensor | tuple[Any, ...],
    ignore: Sequence[str] = (),
) -> ChannelGroups:
    """Find the channel groups of a network.

    Parameters
    ----------
    network : nn.Module
        Any feed-forward network. It is run once in evaluation mode and left as it was.
    example_input : Tensor or tuple
        What the network is called with; a batch of one is enough.
    ignore : sequence of str
        Paths of modules; the channels that they, and the modules inside them, put out all stay.
        Only these modules may decide by the values they compute what to do next; the channels that
        such a module reads stay as well.

    Returns
    -------
    ChannelGroups
        Groups by name. Channels that reach the output, or an operation that cannot be followed,
        are in no group.

    Raises
    ------
    TraceError
        If the network is compiled, scripted or lazy, `ignore` names an unknown module, the network
        fails on the input or takes decisions by the values it computes, or no channel can be
        removed.

    Examples
    --------
    >>> import torch
    >>> import bayesprune as bp
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> groups = bp.trace_groups(network, torch.zeros(1, 4))
    >>> groups.sizes
    {'0': 6}
    >>> groups["0"].modules("consumer")
    ['2']
    """
    if not isinstance(network, nn.Module):
        raise TraceError(f"network: expected an nn.Module, got {type(network).__name__}")
    modules = dict(network.named_modules())
    for name, module in modules.items():
        _check_eager(name or type(network).__name__, module)
    if isinstance(ignore, str):
        raise TraceError(f"ignore: expected a list of module paths, got {ignore!r}")
    unknown = [name for name in ignore if name not in modules]
    if unknown:
        raise TraceError(f"ignore names unknown modules: {', '.join(unknown)}")
    inputs = _positional(example_input)
    tensors = tensors_in(inputs)

    tracer = _Tracer(network)
    for tensor in tensors:
        tracer.set_ids(tensor, torch.zeros((), dtype=torch.long).expand(tensor.shape))
    outputs, macs = _run(network, inputs, tracer, ignore)
    for tensor in tensors_in(outputs):
        tracer.freeze(tensor, "reaches the output of the network")
    _follow_training(network, inputs, tracer, ignore)
    tracer.freeze_uncut()

    batch = len(tensors[0])
    uses = tuple(WeightUse(name, n // batch) for name, n in tracer.positions.items())
    counted = sum(math.prod(tracer.shape(use.tensor)) * use.positions for use in uses)
    parameters = dict(network.named_parameters())
    groups, attended = tracer.groups()
    unit_macs = {name: tuple(n // batch for n in units) for name, units in attended.items()}
    counted += sum(map(sum, unit_macs.values()))
    if not groups:
        kind, frozen = type(network).__name__, list(tracer.frozen().items())
        reasons = "; ".join(f"{layer or kind}: {why}" for layer, why in frozen[:3])
        raise TraceError(
            f"{kind}: no channel can be removed ({reasons or 'no layer found'}). "
            "Only convolutions and linear layers whose output feeds another such layer are "
            "prunable; another example_input may run other layers"
        )
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    shapes |= {s.tensor: tracer.shape(s.tensor) for g in groups.values() for s in g.slices}
    return ChannelGroups(
        groups=groups,
        shapes=shapes,
        parameters=frozenset(parameters),
        uses=uses,
        fixed_macs=max(0, macs // batch - counted),
        frozen=tracer.frozen(),
        unit_macs=unit_macs,
    )


def _positional(example_input: Any) -> tuple[Any, ...]:
    """The arguments that the network is called with."""
    if not isinstance(example_input, Tensor | tuple):
        raise TraceError(
            "example_input: expected a batched tensor or a tuple of the network's arguments, got "
            f"{type(example_input).__name__}; if the network takes just that, make it (value,)"
        )
    inputs = as_arguments(example_input)
    tensors = tensors_in(inputs)
    if not tensors or tensors[0].ndim < 1 or not len(tensors[0]):
        found = ", ".join(str(tuple(t.shape)) for t in tensors) or "no tensor"
        raise TraceError(
            "example_input: expected a batched tensor or a tuple of them, at least one example; "
            f"got {found}"
        )
    return inputs


def _check_eager(name: str, module: nn.Module) -> None:
    """The tracer sees neither into compiled code nor the sizes of what does not exist yet."""
    compiled = hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
    if compiled or isinstance(module, torch.jit.ScriptModule):
        raise TraceError(
            f"{name}: expected an eager network, got {type(module).__name__}: pass the network "
            "from before torch.compile or torch.jit"
        )
    if any(is_lazy(p) for p in module.parameters(recurse=False)):
        raise TraceError(f"{name}: expected initialized parameters; run the lazy network once")


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of a nested output or input: containers, and objects with fields."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, tuple | list):
        value = vars(value).values() if hasattr(value, "__dict__") else ()
    return [tensor for item in value for tensor in tensors_in(item)]


def _follow_training(
    network: nn.Module, inputs: tuple[Any, ...], tracer: _Tracer, ignore: Sequence[str]
) -> None:
    """Follow what auxiliary heads read, which run in training mode only.

    What they put out themselves stays: it has no part in the network's output.
    """
    idle = {
        name
        for name, module in network.named_modules()
        if name not in tracer.called and any(True for _ in module.parameters(recurse=False))
    }
    owners = set()
    for name in idle:
        while name and name not in tracer.called:
            name = name.rpartition(".")[0]
        owners.add(name)
    if not idle:
        return
    counted = dict(tracer.positions), list(tracer.attended)
    tracer.strict = False  # what a loss decides, say, is no part of what is pruned
    known = {slice_.tensor for slice_ in tracer.records}
    try:
        outputs, _ = _run(network, inputs, tracer, ignore, owners)
    except TraceError as error:
        # Without a loss to compute (targets, say) training mode may be out of reach altogether.
        if tracer.module in idle:
            raise TraceError(f"{error}. It runs in training mode only") from error
        outputs = ()
    for tensor in tensors_in(outputs):
        tracer.freeze(tensor, "reaches the output of the network in training mode")
    for slice_ in tracer.records:
        if slice_.role == "producer" and slice_.tensor not in known:
            tracer.freeze_ids(slice_.units, "runs in training mode only")
    tracer.positions, tracer.attended = counted


def _run(
    network: nn.Module,
    inputs: tuple[Any, ...],
    tracer: _Tracer,
    ignore: Sequence[str],
    training: Collection[str] = (),
) -> tuple[Any, int]:
    """Run the network under the tracer; its mode and hooks are restored.

    Modules named in `training`, but not those inside them, run in training mode.
    """
    calls: list[str] = []
    ignored = tuple(f"{name}." for name in ignore)

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            calls.append(name)
            tracer.called.add(name)
            tracer.module = name
            if f"{name}.".startswith(ignored):
                tracer.ignored.append(tensors_in((args, kwargs)))

        return hook

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if f"{calls.pop()}.".startswith(ignored):
            tracer.ignored.pop()
            for tensor in tensors_in(output):
                tracer.freeze(tensor, "named in ignore")
        tracer.module = calls[-1] if calls else ""

    handles = []
    for name, module in network.named_modules():
        handles += [module.register_forward_pre_hook(enter(name), with_kwargs=True)]
        handles += [module.register_forward_hook(leave)]
    counter = FlopCounterMode(display=False)
    try:
        with (
            evaluating(network),
            without_fused_attention(),
            heads_separated(network),
            counter,
            tracer,
        ):
            for name in training:
                network.get_submodule(name).training = True
            outputs = network(*inputs)
        return outputs, counter.get_total_flops() // 2
    except TraceError:
        raise
    except Exception as error:
        where = calls[-1] if calls and calls[-1] else type(network).__name__
        raise TraceError(
            f"{where}: the network failed on example_input "
            f"({', '.join(str(tuple(t.shape)) for t in tensors_in(inputs))}): {error}. Is it what "
            "the network is called with?"
        ) from error
    finally:
        for handle in handles:
            handle.remove()


class _Tracer(TorchFunctionMode):
    """Follows channel ids through every torch function that the network calls."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.module = ""  # the innermost module that is running
        self._class = type(network).__name__
        self.called: set[str] = set()
        self.strict = True  # whether no value may be looked at
        self.ignored: list[list[Tensor]] = []  # what the ignored modules that run now were given
        self.positions: dict[str, int] = {}
        self.skipped: dict[str, str] = {}
        self.attended: list[tuple[Tensor, int]] = []  # heads, and the MACs that each takes
        self._modules = dict(network.named_modules())
        named = [*network.named_parameters(), *network.named_buffers()]
        self._shapes = {name: tuple(tensor.shape) for name, tensor in named}
        self._names = WeakTensorKeyDictionary((tensor, name) for name, tensor in named)
        owned = [t for m in network.modules() for t in m.parameters(recurse=False)]
        self._tied = {self._names[t] for t, n in Counter(owned).items() if n > 1}
        self._ids = WeakTensorKeyDictionary()
        self._parent = [FIXED]
        self._reasons: dict[int, str] = {}
        self._records: dict[tuple[str, int], Slice] = {}
        self._followed: set[str] = set()  # tensors that the current operation records
        self._uncut: dict[str, str] = {}
        self._inexact: set[int] = set()
        self._within: dict[int, int] = {}  # the channel that a selected feature is part of

    @property
    def where(self) -> str:
        """The innermost module that is running, for messages."""
        return self.module or self._class

    @property
    def records(self) -> list[Slice]:
        """The slices so far; their units hold ids until `groups` numbers them."""
        return list(self._records.values())

    # ids and their classes ---------------------------------------------------------------------

    def shape(self, tensor: str) -> tuple[int, ...]:
        return self._shapes[tensor]

    def name(self, value: Any) -> str | None:
        return self._names.get(value) if isinstance(value, Tensor) else None

    def set_ids(self, tensor: Tensor, ids: Tensor) -> None:
        self._ids[tensor] = ids

    def ids(self, value: Any) -> Tensor | None:
        return self._ids.get(value) if isinstance(value, Tensor) else None

    def ids_or_own(self, value: Any) -> Tensor | None:
        """The ids of a value; a vector among the parameters and buffers gets ids of its own."""
        if self.ids(value) is not None or self.name(value) is None:
            return self.ids(value)
        long = [dim for dim, size in enumerate(value.shape) if size > 1]
        if len(long) != 1:
            return None
        vector = self.new_ids(value.shape[long[0]])
        self.record(value, long[0], vector, "passthrough")
        return _spread(vector, long[0], value.shape)

    def new_ids(self, count: int) -> Tensor:
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def find(self, i: int) -> int:
        root = i
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[i] != root:
            self._parent[i], i = root, self._parent[i]
        return root

    def unite(self, a: Tensor, b: Tensor) -> None:
        """Unite ids pairwise; `a` and `b` are vectors of equal length."""
        pairs = torch.stack([a.reshape(-1), b.reshape(-1)], 1)
        for i, j in torch.unique(pairs[pairs[:, 0] != pairs[:, 1]], dim=0).tolist():
            low, high = sorted((self.find(i), self.find(j)))
            self._parent[high] = low  # FIXED is the lowest id and so absorbs the others

    def freeze_ids(self, ids: Tensor, reason: str) -> None:
        unique = torch.unique(compact(ids))
        for i in unique.tolist():
            self._reasons.setdefault(i, reason)
        self.unite(unique, torch.zeros_like(unique))

    def freeze(self, value: Any, reason: str) -> None:
        ids = self.ids(value)
        if ids is not None:
            self.freeze_ids(ids, reason)

    def record(self, tensor: Any, axis: int, ids: Tensor, role: Role) -> None:
        """Note that entries of a tensor belong to ids; at a second use both uses are united."""
        name = self.name(tensor)
        if name is not None:
            self._followed.add(name)
            first = self._records.setdefault((name, axis), Slice(name, axis, ids, role))
            self.unite(first.units, ids)

    def freeze_uncut(self) -> None:
        """Freeze what belongs to tensors that something used as a whole."""
        for slice_ in self.records:
            if slice_.tensor in self._uncut:
                self.freeze_ids(
                    slice_.units, f"owns entries of {slice_.tensor}, {self._uncut[slice_.tensor]}"
                )

    def hold(self, features: Tensor, channels: Tensor) -> None:
        """Note which channel each selected feature is part of; vectors of equal length."""
        self._within.update(zip(features.tolist(), channels.tolist(), strict=True))

    def _holders(self) -> dict[int, int]:
        """The unit that holds each unit that is part of one.

        A channel stays where its feature does, where features of several channels are one unit, and
        where it is part of itself by way of others.
        """
        while True:
            held: dict[int, int] = {}
            stays = []
            for feature, channel in self._within.items():
                unit, holder = self.find(feature), self.find(channel)
                if unit == holder or holder == FIXED:
                    continue
                if unit == FIXED or held.setdefault(unit, holder) != holder:
                    stays += [holder] if unit == FIXED else [holder, held[unit]]
            for unit in held if not stays else ():
                if unit in islice(_chain(unit, held), len(held)):
                    stays.append(unit)
            if not stays:
                return held
            self.freeze_ids(torch.tensor(stays), "a feature that is selected from it must stay")

    def _look(self, call: str) -> None:
        """Values are looked at: what the network does next may depend on them."""
        if self.ignored:  # the outermost of the ignored modules is a black box
            for tensor in self.ignored[0]:
                self.freeze(tensor, f"is read where values decide, by {call}() in {self.where}")
        # PyTorch's own layers look at values to choose between equivalent computations.
        elif self.strict and not _is_torchs(self._modules[self.module]):
            left = (
                f'name it in ignore=["{self.module}"], which leaves its channels, and those that '
                "it reads, as they are"
                if self.module
                else "move that code into a module of its own and name this one in ignore=[...]"
            )
            raise TraceError(
                f"{self.where}: calls {call}() on a tensor that depends on the input (as `if`, "
                "`assert`, float(x) and x.item() do); what the network does with other values "
                f"cannot be seen from one run. Either {left}; or pass an example_input that takes "
                "a way around it"
            )

    # the result ----------------------------------------------------------------------------------

    def frozen(self) -> dict[str, str]:
        """Producing layers none of whose channels can be removed, with the reason."""
        out = dict(self.skipped)
        for slice_ in self.records:
            ids = slice_.units.tolist()
            if slice_.role == "producer" and all(self.find(i) == FIXED for i in ids):
                reason = next((self._reasons[i] for i in ids if i in self._reasons), None)
                out[slice_.module] = reason or "coupled to a channel that must stay"
        followed = {slice_.module for slice_ in self.records}
        for tensor, shape in self._shapes.items():
            owner = tensor.rpartition(".")[0]
            if len(shape) < 2 or owner in followed:
                continue
            if owner not in self.called and tensor not in self._uncut:
                out.setdefault(owner, "did not run for example_input")
            elif _is_torchs(self._modules[owner]):
                kind = type(self._modules[owner]).__name__
                out.setdefault(owner, f"{kind} is not followed")
        return out

    def groups(self) -> tuple[dict[str, ChannelGroup], dict[str, tuple[int, ...]]]:
        """The groups, and the MACs outside layers of those whose units take any."""
        holders = self._holders()
        roots = [torch.tensor([self.find(i) for i in s.units.tolist()]) for s in self.records]
        read = {
            r
            for s, v in zip(self.records, roots, strict=True)
            if s.role == "consumer"
            for r in v.tolist()
        }
        read |= {holder for unit in read for holder in _chain(unit, holders)}
        inexact = {self.find(i) for i in self._inexact}
        inexact |= {holder for unit in inexact for holder in _chain(unit, holders)}
        # Units that share a producer belong to one group: a second, coarser union over units.
        group_of: dict[int, int] = {}

        def top(unit: int) -> int:
            while group_of[unit] != unit:
                unit = group_of[unit]
            return unit

        members: list[int] = []
        for slice_, vector in zip(self.records, roots, strict=True):
            if slice_.role != "producer":
                continue
            free = [r for r in dict.fromkeys(vector.tolist()) if r != FIXED and r in read]
            for unit in free:
                if unit not in group_of:
                    group_of[unit] = unit
                    members.append(unit)
                a, b = sorted((top(free[0]), top(unit)))
                group_of[b] = a
        names: dict[int, str] = {}
        for slice_, vector in zip(self.records, roots, strict=True):
            for unit in vector.tolist() if slice_.role == "producer" else ():
                if unit in group_of:
                    names.setdefault(top(unit), slice_.module)
        number: dict[int, tuple[int, int]] = {}  # unit -> its group and its place in it
        sizes = dict.fromkeys(names, 0)
        for unit in members:
            key = top(unit)
            number[unit] = (key, sizes[key])
            sizes[key] += 1
        within: dict[int, dict[int, None]] = {key: {} for key in names}
        for unit in members:
            for holder in _chain(unit, holders):
                if holder in group_of:
                    within[top(unit)][top(holder)] = None
        if any(key in around for key, around in within.items()):
            # One vector of units cannot tell a channel from its feature: the channels stay.
            self.freeze_ids(torch.tensor(list(holders.values())), "holds units of its own group")
            return self.groups()
        slices: dict[int, list[Slice]] = {key: [] for key in names}
        for record, vector in zip(self.records, roots, strict=True):
            owners: dict[int, list[int]] = {}
            for place, unit in enumerate(vector.tolist()):
                for owner in (unit, *_chain(unit, holders)):
                    key, i = number.get(owner, (-1, -1))
                    if key >= 0:
                        owners.setdefault(key, [-1] * len(vector))[place] = i
            direct = {number[unit][0] for unit in vector.tolist() if unit in number}
            for key, units in owners.items():
                held = record.role == "producer" and key not in direct
                role: Role = "passthrough" if held else record.role
                slices[key].append(Slice(record.tensor, record.axis, torch.tensor(units), role))
        blurred = {number[unit][0] for unit in inexact if unit in number}
        macs: dict[str, list[int]] = {}
        for heads, each in self.attended:
            for head in heads.tolist():
                key, place = number.get(self.find(head), (-1, -1))
                if key >= 0:
                    macs.setdefault(names[key], [0] * sizes[key])[place] += each
        groups = {
            name: ChannelGroup(
                name,
                sizes[key],
                tuple(slices[key]),
                key not in blurred,
                tuple(names[around] for around in within[key]),
            )
            for key, name in names.items()
        }
        return groups, {name: tuple(units) for name, units in macs.items()}

    # the operations ------------------------------------------------------------------------------

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        arguments = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        if name in _READS and any(self.ids(a) is not None for a in arguments):
            self._look(name.strip("_"))
        output = func(*args, **kwargs)
        if name == "__setitem__":
            for leaf in arguments:
                self.freeze(leaf, f"is written in place in {self.where}")
            return output
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(output)):
            self._followed = set()
            if any(self.ids(a) is not None or self.name(a) for a in arguments):
                handler = _HANDLERS.get(name) or _HANDLERS.get(name.rstrip("_"), _unknown)
                handler(self, func, args, kwargs, output)
            for leaf in arguments:
                whole = self.name(leaf)
                if whole is not None and whole not in self._followed:
                    self._uncut[whole] = f"which {name} uses as a whole in {self.where}"
        return output


_READS = {
    *("item", "tolist", "numpy", "__array__", "__bool__", "__int__", "__float__", "__complex__"),
    *("__index__", "__contains__", "equal", "allclose", "is_nonzero"),
}
"""What makes Python values of a tensor's values."""


def _chain(unit: int, holders: Mapping[int, int]) -> Iterator[int]:
    """The unit that holds a unit, the one that holds that, and so on."""
    while unit in holders:
        unit = holders[unit]
        yield unit


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def compact(ids: Tensor) -> Tensor:
    """`ids` with every dimension along which they do not vary cut to size 1."""
    for dim in range(ids.ndim):
        if ids.shape[dim] > 1:
            first = ids.narrow(dim, 0, 1)
            if ids.stride(dim) == 0 or bool((ids == first).all()):
                ids = first
    return ids


def along(ids: Tensor, dim: int) -> Tensor | None:
    """The vector of ids along `dim`, or None if they vary along another dimension too."""
    small = compact(ids)
    dim %= ids.ndim
    if any(size > 1 for d, size in enumerate(small.shape) if d != dim):
        return None
    return small.reshape(-1).expand(ids.shape[dim]) if small.numel() == 1 else small.reshape(-1)


Handler = Callable[[_Tracer, Callable[..., Any], tuple[Any, ...], dict[str, Any], Any], None]
_HANDLERS: dict[str, Handler] = {}


def _handles(*names: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        _HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], index: int, name: str) -> Any:
    return args[index] if len(args) > index else kwargs.get(name)


def _unknown(
    tracer: _Tracer,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
    reason: str = "which is not known to keep channels apart",
) -> None:
    """Freeze what goes in; nothing that comes out can be removed."""
    name = getattr(func, "__name__", str(func))
    tracked = [a for a in tree_leaves((args, kwargs)) if tracer.ids(a) is not None]
    for leaf in tracked:
        tracer.freeze(leaf, f"passes through {name} in {tracer.where}, {reason}")
    for leaf in tree_leaves(output) if tracked else ():
        if isinstance(leaf, Tensor):
            tracer.set_ids(leaf, torch.zeros((), dtype=torch.long).expand(leaf.shape))


def _spread(vector: Tensor, dim: int, shape: torch.Size) -> Tensor:
    """Ids of a tensor of `shape` whose channels lie along `dim`."""
    view = [1] * len(shape)
    view[dim] = -1
    return vector.reshape(view).expand(shape)


def _computed(owner: nn.Module | None) -> str:
    """Why a weight that is no parameter of its layer cannot be cut, and what to do about it."""
    way = None
    if owner is not None and is_parametrized(owner):
        way = "parametrize.remove_parametrizations"
    elif hasattr(owner, "weight_mask"):
        way = "prune.remove"
    elif hasattr(owner, "weight_g"):
        way = "remove_weight_norm"
    elif hasattr(owner, "weight_orig"):
        way = "remove_spectral_norm"
    if way is None:
        return "whose weight is not simply a layer's parameter"
    return (
        "whose weight is computed anew from other tensors in each call: make it a parameter with "
        f"torch.nn.utils.{way} first"
    )


@_handles(
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "linear",
)
def _layer(
    tracer: _Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
) -> None:
    x, weight = args[0], _argument(args, kwargs, 1, "weight")
    bias = _argument(args, kwargs, 2, "bias")
    name, ids = tracer.name(weight), tracer.ids(x)
    if ids is None:  # a constant
        ids = torch.zeros((), dtype=torch.long).expand(x.shape)
    owner = tracer._modules.get(tracer.module)
    trouble = None
    # Its reader of all channels is no layer that a gate could stand before.
    packed = isinstance(owner, nn.MultiheadAttention) and owner.in_proj_weight is weight
    layer = isinstance(owner, nn.Linear | _Convolution) and owner.weight is weight
    if name is None or not (layer or packed):
        trouble = _computed(owner)
    elif name in tracer._tied:
        trouble = "whose weight several layers share"
    elif x.ndim != weight.ndim and isinstance(owner, _Convolution):
        trouble = "which is called without a batch dimension"
    if trouble is not None or name is None:
        _unknown(tracer, func, args, kwargs, output, str(trouble))
        tracer.skipped[tracer.where] = f"runs {func.__name__}, {trouble}"
        return
    convolution = owner if isinstance(owner, _Convolution) else None
    dim = 1 if convolution else -1
    transposed = convolution is not None and convolution.transposed
    blocks = convolution.groups if convolution else 1
    inputs, outputs = x.shape[dim], output.shape[dim]
    spatial = x if transposed else output
    tracer.positions[name] = tracer.positions.get(name, 0) + spatial.numel() // spatial.shape[dim]

    incoming = along(ids, dim)
    if incoming is None:
        tracer.freeze_ids(ids, f"{tracer.where} reads channels that vary over positions")
        incoming = torch.zeros(inputs, dtype=torch.long)
    if packed:
        tracer.freeze_ids(incoming, f"is the input of {tracer.where}, whose width is fixed")
    axes = (1, 0) if transposed else (0, 1)
    if blocks == 1:
        out = tracer.new_ids(outputs)
        tracer.record(weight, axes[0], out, "producer")
        tracer.record(weight, axes[1], incoming, "consumer")
    else:
        # Channels of one block are mixed with each other only: the block is the unit.
        rows = incoming.reshape(blocks, -1)
        tracer.unite(rows[:, :1].expand_as(rows), rows)
        out = rows[:, 0].repeat_interleave(outputs // blocks)
        if transposed:
            tracer.record(weight, 0, incoming, "passthrough")
        else:
            tracer.record(weight, 0, out, "passthrough")
    tracer.record(bias, 0, out, "passthrough")
    tracer.set_ids(output, _spread(out, dim, output.shape))


@_handles("embedding")
def _embedding(
    tracer: _Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
) -> None:
    weight = _argument(args, kwargs, 1, "weight")
    name = tracer.name(weight)
    if name is None or name in tracer._tied:
        _unknown(tracer, func, args, kwargs, output)
        return
    out = tracer.new_ids(weight.shape[1])
    tracer.record(weight, 1, out, "producer")
    tracer.set_ids(output, _spread(out, -1, output.shape))


@_handles("scaled_dot_product_attention")
def _attention(
    tracer: _Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
) -> None:
    """Heads stay apart; what they compare is one unit with what they put out."""
    parts = [_argument(args, kwargs, i, n) for i, n in enumerate(("query", "key", "value"))]
    mask = _argument(args, kwargs, 3, "attn_mask")
    biased = tracer.ids(mask) is not None
    ids = [tracer.ids(x) for x in (*parts, mask)[: 4 if biased else 3]]
    heads = [along(x, -3) for x in ids if x is not None and x.ndim > 2]
    vectors = [vector for vector in heads if vector is not None and len(vector) == output.shape[-3]]
    if len(vectors) < len(ids):
        _unknown(tracer, func, args, kwargs, output)
        return
    for vector in vectors[1:]:
        tracer.unite(vectors[0], vector)
    out = _spread(vectors[0], -3, output.shape)
    if mask is not None and not biased:
        _constant_operand(tracer, func, mask, out, out.ndim)
    query, key, value = parts
    each = output[..., 0].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
    tracer.attended.append((vectors[0], each // len(vectors[0])))
    tracer.set_ids(output, out)


@_handles("multi_head_attention_forward")
def _whole_attention(
    tracer: _Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> None:
    reason = "heads leave self-attention that is called with need_weights=False"
    _unknown(tracer, func, args, kwargs, output, f"where all stay: {reason}")
    tracer.skipped[tracer.where] = f"runs {func.__name__} and keeps all heads: {reason}"


@_handles("batch_norm", "instance_norm")
def _channel_norm(
    tracer: _Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
) -> None:
    ids = tracer.ids(args[0])
    if ids is None:
        return
    vector = along(ids, 1)
    if vector is None:
        _unknown(tracer, func, args, kwargs, output)
        return
    for index, name in enumerate(("running_mean", "running_var", "weight", "bias"), start=1):
        tracer.record(_argument(args, kwargs, index, name), 0, vector, "passthrough")
    tracer.set_ids(output, ids)


def _keeps_size(tracer: _Tracer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a normalisation is a module whose sizes no parameter gives away after surgery."""
    owner = tracer._modules.get(tracer.module)
    norms = nn.GroupNorm | nn.LayerNorm | nn.RMSNorm
    return isinstance(owner, norms) and _argument(args, kwargs, 2, "weight") is None


@_handles("layer_norm", "rms_norm")
def _layer_norm(
    tracer: _Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
) -> None:
    ids, shape = tracer.ids(args[0]), _argument(args, kwargs, 1, "normalized_shape")
    if ids is None:
        return
    varying = [d for d, size in enumerate(compact(ids).shape) if size > 1]
    if len(varying) > 1:
        _unknown(tracer, func, args, kwargs, output)
        return
    axis = varying[0] - (ids.ndim - len(shape)) if varying else -1
    if axis >= 0 and _keeps_size(tracer, args, kwargs):
        _unknown(tracer, func, args, kwargs, output, "whose size is fixed")
        return
    if axis >= 0:
        vector = compact(ids).reshape(-1)
        tracer._inexact.update(vector.tolist())
        for index, name in enumerate(("weight", "bias"), start=2):
            tracer.record(_argument(args, kwargs, index, name), axis, vector, "passthrough")
    tracer.set_ids(output, ids)


@_handles("group_norm")
def _group_norm(
    tracer: _Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
) -> None:
    ids, blocks = tracer.ids(args[0]), _argument(args, kwargs, 1, "num_groups")
    if ids is None:
        return
    vector = along(ids, 1)
    # A number of blocks that is written into the code does not follow whole blocks that leave.
    written = blocks > 1 and not isinstance(tracer._modules.get(tracer.module), nn.GroupNorm)
    if vector is None or written or _keeps_size(tracer, args, kwargs):
        _unknown(tracer, func, args, kwargs, output, "whose number of blocks is fixed")
        return
    if blocks == 1:
        tracer._inexact.update(vector.tolist())
    else:
        rows = vector.reshape(blocks, -1)
        tracer.unite(rows[:, :1].expand_as(rows), rows)
    for index, name in enumerate(("weight", "bias"), start=2):
        tracer.record(_argument(args, kwargs, index, name), 0, vector, "passthrough")
    tracer.set_ids(output, ids)


@_handles(
    *("contiguous", "clone", "detach", "to", "float", "double", "half", "bfloat16", "type"),
    *("type_as", "cpu", "cuda", "requires_grad", "zeros_like", "ones_like", "full_like"),
    *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish"),
    *("hardsigmoid", "hardtanh", "sigmoid", "tanh", "softplus", "softsign", "logsigmoid"),
    *("threshold", "exp", "log", "sqrt", "rsqrt", "square", "abs", "neg", "__neg__", "reciprocal"),
    *("sign", "sin", "cos", "erf", "clamp", "clip", "nan_to_num", "dropout", "dropout1d"),
    *("dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "stochastic_depth"),
)
def _same(
    tracer: _Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
) -> None:
    ids = tracer.ids_or_own(args[0] if args else kwargs["input"])
    if ids is not None:
        tracer.set_ids(output, ids)


@_handles(
    *("add", "sub", "rsub", "mul", "multiply", "div", "true_divide", "maximum", "minimum", "pow"),
    *("__add__", "__radd__", "__iadd__", "__sub__", "__rsub__", "__isub__", "__mul__", "__rmul__"),
    *("__imul__", "__truediv__", "__rtruediv__", "__itruediv__", "__pow__", "addcmul", "where"),
    *("lerp", "prelu", "masked_fill", "gt", "ge", "lt", "le", "eq", "ne"),
    *("__gt__", "__ge__", "__lt__", "__le__", "__eq__", "__ne__"),
)
def _elementwise(
    tracer: _Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
) -> None:
    operands = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
    tracked = [ids for a in operands if (ids := tracer.ids(a)) is not None]
    if not tracked:
        return  # constants and parameters among themselves
    shape = output.shape
    result: Tensor | None = None
    for ids in tracked:
        ids = _aligned(ids, len(shape))
        if result is None:
            result = ids
            continue
        a, b = compact(result), compact(ids)
        wider = [d for d in range(len(shape)) if a.shape[d] < b.shape[d] and result.shape[d] == 1]
        wider_b = [d for d in range(len(shape)) if b.shape[d] < a.shape[d] and ids.shape[d] == 1]
        # One channel spread over many (a spatial mask) stays; it does not tie the many together.
        if wider:
            tracer.freeze_ids(a, f"is spread over several channels in {tracer.where}")
        if wider_b:
            tracer.freeze_ids(b, f"is spread over several channels in {tracer.where}")
        if not wider and not wider_b:
            tracer.unite(*torch.broadcast_tensors(a, b))
        shape_so_far = torch.broadcast_shapes(result.shape, ids.shape)
        result = (b if wider and not wider_b else a).expand(shape_so_far)
    assert result is not None
    for operand in operands:
        if tracer.ids(operand) is None:
            _constant_operand(tracer, func, operand, result, len(shape))
    tracer.set_ids(output, result.expand(shape))


def _aligned(ids: Tensor, ndim: int) -> Tensor:
    return ids.reshape((1,) * (ndim - ids.ndim) + tuple(ids.shape)) if ids.ndim < ndim else ids


def _constant_operand(tracer: _Tracer, func: Any, tensor: Tensor, ids: Tensor, ndim: int) -> None:
    """A parameter or buffer that meets channels element by element is cut with them.

    Nobody knows whether any other tensor would follow the removal.
    """
    small = compact(ids)
    varying = [d for d, size in enumerate(small.shape) if size > 1]
    for dim in varying:
        # PReLU's weight belongs to dimension 1; other operands broadcast from the right.
        prelu = getattr(func, "__name__", "") == "prelu"
        axis = 0 if prelu else dim - (ndim - tensor.ndim)
        if axis < 0 or tensor.shape[axis] == 1:
            continue
        name = tracer.name(tensor)
        if name is None or len(varying) > 1:
            what = name or "a tensor that is not a parameter or buffer"
            tracer.freeze_ids(small, f"meets {what} in {tracer.where}")
        else:
            tracer.record(tensor, axis, small.reshape(-1), "passthrough")


@_handles(
    *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose"),
    *("swapaxes", "swapdims", "movedim", "moveaxis", "expand", "expand_as", "repeat", "tile", "t"),
    *("view_as", "reshape_as", "flip", "__get__", "repeat_interleave"),
)
def _movement(
    tracer: _Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> None:
    ids = tracer.ids_or_own(args[0])
    if ids is None:
        return
    name = getattr(func, "__name__", "")
    # Ids may be expanded, which `view` does not take.
    views = name.startswith("view")
    moved = ids.reshape(output.shape) if views else func(ids, *args[1:], **kwargs)
    small = compact(moved)
    varying = [dim for dim, size in enumerate(small.shape) if size > 1]
    if len(varying) > 1 and sum(size > 1 for size in compact(ids).shape) == 1:
        # One channel dimension split into several: one of them follows the removal, the one given
        # as -1 or else the last, and what lies along the others belongs to one unit.
        inferred = _inferred(name, args[1:], ids.ndim)
        for dim in varying:
            if dim != (inferred if inferred in varying else varying[-1]):
                first = small.narrow(dim, 0, 1)
                tracer.unite(first.expand_as(small), small)
                small = first
    tracer.set_ids(output, small.expand(moved.shape))


def _inferred(name: str, args: tuple[Any, ...], ndim: int) -> int | None:
    """The dimension whose size a view leaves open, as -1."""
    first, *sizes = args if name == "unflatten" else (0, *args)
    if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
        sizes = list(sizes[0])
    return first % ndim + sizes.index(-1) if -1 in sizes else None


@_handles("chunk", "tensor_split", "split", "split_with_sizes", "unbind", "__getitem__", "narrow")
@_handles("select", "index_select", "roll", "take_along_dim", "gather", "masked_select")
def _selection(
    tracer: _Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> None:
    ids = tracer.ids_or_own(args[0])
    if ids is None:
        return
    name = getattr(func, "__name__", "")
    index = _argument(args, kwargs, 2, "index")
    if name == "index_select" and "." in (tracer.name(index) or ""):
        # Each entry of a module's index makes a channel of its own, which leaves with it.
        dim, out = _argument(args, kwargs, 1, "dim"), tracer.new_ids(len(index))
        incoming, owner = along(ids, dim), tracer._modules[tracer.module]
        whole = isinstance(owner, SelectFeatures) and len(owner.inputs) == ids.shape[dim]
        if isinstance(owner, SelectFeatures) and whole and incoming is not None:
            tracer.record(owner.inputs, 0, incoming, "passthrough")
            tracer.hold(out, incoming[index.cpu()])
        else:
            tracer.freeze(args[0], f"is picked by position by {name} in {tracer.where}")
        tracer.record(index, 0, out, "producer")
        tracer.set_ids(output, _spread(out, dim, output.shape))
        return
    leaves = tree_leaves(func(ids, *args[1:], **kwargs))
    small = [compact(leaf) for leaf in leaves]
    before = compact(ids).reshape(-1)
    if name == "chunk" and len({leaf.shape for leaf in leaves}) == 1:
        for piece in small[1:]:  # pieces stay of equal size
            tracer.unite(*torch.broadcast_tensors(small[0], piece))
        small = [small[0]] * len(small)
    elif not all(torch.equal(piece.reshape(-1), before) for piece in small):
        tracer.freeze_ids(ids, f"is picked by position by {name} in {tracer.where}")
    for leaf, piece, full in zip(tree_leaves(output), small, leaves, strict=True):
        tracer.set_ids(leaf, piece.expand(full.shape))


@_handles("cat", "concat", "concatenate", "stack")
def _join(
    tracer: _Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
) -> None:
    tensors = args[0] if args else kwargs["tensors"]
    parts = []
    for tensor in tensors:
        ids = tracer.ids(tensor)
        parts.append(torch.zeros(tensor.shape, dtype=torch.long) if ids is None else ids)
    joined = func(parts, *args[1:], **kwargs)
    tracer.set_ids(output, compact(joined).expand(joined.shape))


@_handles("pad")
def _pad(
    tracer: _Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
) -> None:
    ids, widths = tracer.ids(args[0]), _argument(args, kwargs, 1, "pad")
    if ids is None:
        return
    small = compact(ids)
    for i, (left, right) in enumerate(zip(widths[::2], widths[1::2], strict=True)):
        dim = ids.ndim - 1 - i
        if small.shape[dim] > 1 and (left or right):
            # Channels added by a padding of fixed width: they are constants and must stay.
            edge = list(small.shape)
            parts = []
            for width in (left, right):
                edge[dim] = max(width, 0)
                parts.append(torch.zeros(edge, dtype=torch.long))
            kept = small.narrow(dim, max(-left, 0), small.shape[dim] + min(left, 0) + min(right, 0))
            small = torch.cat([parts[0], kept, parts[1]], dim)
    tracer.set_ids(output, small.expand(output.shape))


@_handles(
    *("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
    *("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
    *("max_pool2d_with_indices", "lp_pool2d", "interpolate", "upsample"),
)
def _spatial(
    tracer: _Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> None:
    ids = tracer.ids(args[0] if args else kwargs["input"])
    if ids is None:
        return
    small = compact(ids)
    if any(size > 1 for size in small.shape[2:]):
        _unknown(tracer, func, args, kwargs, output)
        return
    for leaf in tree_leaves(output):
        tracer.set_ids(leaf, small.expand(leaf.shape))


@_handles(
    "mean", "sum", "amax", "amin", "std", "var", "softmax", "log_softmax", "normalize", "cumsum"
)
def _reduction(
    tracer: _Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
) -> None:
    ids = tracer.ids(args[0] if args else kwargs["input"])
    if ids is None:
        return
    dims = kwargs.get("dim")
    if dims is None:
        dims = next((a for a in args[1:] if isinstance(a, int | tuple | list)), None)
    dims = range(ids.ndim) if dims is None else [dims] if isinstance(dims, int) else list(dims)
    dims = {d % ids.ndim for d in dims}
    small = compact(ids)
    if any(small.shape[d] > 1 for d in dims):
        _unknown(tracer, func, args, kwargs, output)
        return
    if output.ndim < ids.ndim:
        small = small.squeeze(tuple(dims))
    tracer.set_ids(output, small.expand(output.shape))


@_handles("new_zeros", "new_ones", "new_full", "new_tensor")
def _constant(
    tracer: _Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
) -> None:
    """A constant that takes no more than its type from its argument."""
