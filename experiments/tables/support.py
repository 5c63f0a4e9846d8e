"""Which networks can be pruned, and how exactly: builds docs/results/support.md.

    python experiments/tables/support.py

Each network gets switches and one step of inference, loses channels at random, and runs forward and
backward; what the smaller one computes is compared with the masked and the folded network.
``tests/test_support.py`` asserts on the same rows.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pyro.distributions as dist
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import detection, segmentation

import bayesprune as bp
from bayesprune.cost import CostModel
from bayesprune.errors import TraceError
from bayesprune.gating import GatedNetwork
from bayesprune.groups import ChannelGroups, tensors_in
from bayesprune.network import Likelihood

PAGE = Path(__file__).parents[2] / "docs" / "results" / "support.md"
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

Case = Callable[[], tuple[nn.Module, Tensor]]
CASES: dict[str, Case] = {}
REFUSED: dict[str, Case] = {}


def _torchvision(name: str, size: int, **kwargs: Any) -> Case:
    def build() -> tuple[nn.Module, Tensor]:
        if name in ("googlenet", "inception_v3"):
            kwargs["init_weights"] = False
        network = torchvision.models.get_model(name, weights=None, num_classes=10, **kwargs)
        return network, torch.randn(2, 3, size, size)

    return build


# One member of each family, with inputs as small as the architecture allows.
for _name, _size in {
    **{"alexnet": 64, "vgg11": 32, "vgg11_bn": 32, "resnet18": 64, "resnet50": 64},
    **{"resnext50_32x4d": 64, "wide_resnet50_2": 64, "densenet121": 64, "googlenet": 64},
    **{"inception_v3": 299, "mobilenet_v2": 64, "mobilenet_v3_small": 64, "mnasnet0_5": 64},
    **{"shufflenet_v2_x0_5": 64, "squeezenet1_1": 64, "efficientnet_b0": 64},
    **{"efficientnet_v2_s": 64, "regnet_y_400mf": 64, "regnet_x_400mf": 64, "convnext_tiny": 64},
    **{"swin_t": 64, "swin_v2_t": 64},
}.items():
    CASES[_name] = _torchvision(_name, _size)
CASES["vit_b_16"] = _torchvision("vit_b_16", 64, image_size=64)
CASES["maxvit_t"] = _torchvision("maxvit_t", 224)


def _own(name: str) -> Case:
    return lambda: (bp.models.create(name), torch.randn(2, *bp.models.input_shape(name)))


# Of each class of this package the smallest; the others differ in depth and width.
for _name in ("digits", "lenet300_100", "lenet5", "resnet20", "vgg16"):
    CASES[f"bayesprune:{_name}"] = _own(_name)
CASES["bayesprune:WideResNet(10, 2)"] = lambda: (
    bp.models.WideResNet(depth=10, width=2),
    torch.randn(2, 3, 32, 32),
)


def case(build: Case) -> Case:
    CASES[build.__name__] = build
    return build


class Transformer(nn.Module):
    """A classifier of sequences by `nn.TransformerEncoder`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


@case
def transformer_encoder() -> tuple[nn.Module, Tensor]:
    return Transformer(), torch.randn(2, 7, 8)


class UNet(nn.Module):
    """Two levels, joined by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = self._block(3, 16), self._block(16, 32)
        self.bottom = self._block(32, 48)
        self.rise2, self.rise1 = nn.ConvTranspose2d(48, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)
        self.up2, self.up1 = self._block(64, 32), self._block(32, 16)
        self.last = nn.Conv2d(16, 2, 1)

    @staticmethod
    def _block(inputs: int, outputs: int) -> nn.Module:
        layers = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(nn.functional.max_pool2d(a, 2))
        x = self.rise2(self.bottom(nn.functional.max_pool2d(b, 2)))
        x = self.rise1(self.up2(torch.cat([x, b], 1)))
        return self.last(self.up1(torch.cat([x, a], 1)))


@case
def u_net() -> tuple[nn.Module, Tensor]:
    return UNet(), torch.randn(2, 3, 32, 32)


class TwoHeads(nn.Module):
    """One trunk, a classification and a regression."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU())
        self.label, self.value = nn.Linear(16, 5), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.trunk(x)
        return {"label": self.label(x), "value": self.value(x)}


@case
def two_outputs() -> tuple[nn.Module, Tensor]:
    return TwoHeads(), torch.randn(2, 8)


def _segmentation(name: str) -> Case:
    def build() -> tuple[nn.Module, Tensor]:
        make = getattr(segmentation, name)
        network = make(weights=None, weights_backbone=None, num_classes=3, aux_loss=True)
        return network, torch.randn(2, 3, 64, 64)

    return build


for _name in ("fcn_resnet50", "deeplabv3_resnet50"):
    CASES[_name] = _segmentation(_name)


def _detector() -> nn.Module:
    return detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)


@case
def faster_rcnn_backbone() -> tuple[nn.Module, Tensor]:
    return _detector().backbone, torch.randn(2, 3, 64, 64)


class Recurrent(nn.Module):
    """A layer that the tracer does not follow, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


REFUSED["lstm"] = lambda: (Recurrent(), torch.randn(2, 7, 8))


@dataclass(frozen=True)
class Row:
    """What `check` found for one network."""

    name: str
    groups: int
    units: int
    prunable: float  # share of the parameters that leaves when each group keeps one unit
    exact: int  # groups
    inexact: dict[str, int]  # number of groups by reason
    frozen: int  # layers
    shapes_kept: bool
    difference: float  # the largest between masked, folded and removed, relative to the output
    effect: float  # the same between masked and whole: what there is to find


def liven(network: nn.Module) -> None:
    """Offsets and statistics as after training, so that a removed channel would be missed."""
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if name.endswith(("bias", "running_mean")):
                tensor.normal_(0, 0.1)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point() and tensor.ndim > 1 and not tensor.std() > 0:
                tensor.normal_(0, 0.2)  # a start at zero or nearly so hides what lies before it


def random_plan(groups: ChannelGroups, names: list[str], seed: int = 0) -> bp.PruningPlan:
    """Removes 30% of the units of the named groups, at least one wherever there are two."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for name in names:
        size = groups.sizes[name]
        count = max(1, min(size - 1, round(0.7 * size)))
        kept[name] = sorted(torch.randperm(size, generator=generator)[:count].tolist())
    return bp.PruningPlan(kept, {name: groups.sizes[name] for name in names})


def _outputs(network: nn.Module, *inputs: Any) -> list[Tensor]:
    with torch.no_grad():
        return [t.detach() for t in tensors_in(network.eval()(*inputs))]


def _difference(a: list[Tensor], b: list[Tensor]) -> float:
    return max(((x - y).abs().max() / y.abs().max()).item() for x, y in zip(a, b, strict=True))


def _likelihood(output: Any) -> Any:
    """Classes from logits, or real numbers around anything else."""
    if isinstance(output, Tensor) and output.ndim == 2:
        return dist.Categorical(logits=output)
    return dist.Normal(_flat(output), 1.0).to_event(1)


def _flat(output: Any) -> Tensor:
    return torch.cat([t.flatten(1) for t in tensors_in(output)], 1)


def _infer(network: nn.Module, groups: ChannelGroups, inputs: Tensor) -> None:
    """One step of stochastic variational inference over all groups."""
    likelihood: Likelihood = _likelihood
    switched = bp.SwitchedNetwork(
        network, groups, bp.switches.Dirichlet(), num_data=2, likelihood=likelihood
    )
    with torch.no_grad():
        output = switched.network(inputs)
    plain = isinstance(output, Tensor) and output.ndim == 2
    targets = output.argmax(1) if plain else _flat(output)
    loader = [(inputs, targets)]
    bp.fit_switches(switched, loader, epochs=1, progress=False)  # type: ignore[arg-type]


def _reason(network: nn.Module, group: bp.ChannelGroup) -> str:
    kinds = {type(network.get_submodule(path)) for path in group.modules("passthrough")}
    norms = sorted(kind.__name__ for kind in kinds if issubclass(kind, NORMS))
    return f"{' and '.join(norms) or 'a normalisation'} over channels"


def _train(network: nn.Module, inputs: Tensor) -> None:
    """Forward and backward in training mode; auxiliary heads run there only."""
    network.train()
    sum(t.square().mean() for t in tensors_in(network(inputs))).backward()  # type: ignore[union-attr]
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def check(name: str) -> Row:
    """Trace, infer, remove and compare one network."""
    torch.manual_seed(0)
    network, inputs = CASES[name]()
    liven(network)
    groups = bp.trace_groups(network, inputs)
    _infer(network, groups, inputs)

    exact = [key for key, group in groups.items() if group.exact]
    plan = random_plan(groups, exact)
    small = bp.remove_channels(network, plan, inputs)
    gated = GatedNetwork(network, groups, exact).eval()
    masked = _outputs(gated, inputs, plan.masks())
    removed = _outputs(small, inputs)
    folded = _outputs(gated.fold(plan.masks()), inputs)
    difference = max(_difference(removed, masked), _difference(folded, masked))
    dense = _outputs(network, inputs)
    if len(exact) < len(groups):
        small = bp.remove_channels(network, random_plan(groups, list(groups)), inputs)
        removed = _outputs(small, inputs)
    _train(copy.deepcopy(small), inputs)

    inexact: dict[str, int] = {}
    for group in groups.values():
        if not group.exact:
            reason = _reason(network, group)
            inexact[reason] = inexact.get(reason, 0) + 1
    whole = CostModel(groups)({}).params
    least = CostModel(groups)({key: [0] for key in groups}).params
    return Row(
        name=name,
        groups=len(groups),
        units=sum(groups.sizes.values()),
        prunable=1 - least / whole,
        exact=len(exact),
        inexact=inexact,
        frozen=len(groups.frozen),
        shapes_kept=[t.shape for t in removed] == [t.shape for t in dense],
        difference=difference,
        effect=_difference(masked, dense),
    )


def refusal(name: str) -> str:
    """The message with which a network is refused."""
    try:
        bp.trace_groups(*REFUSED[name]())
    except TraceError as error:
        return str(error)
    raise AssertionError(f"{name} can be traced: move it to CASES")


def page(rows: list[Row]) -> str:
    """The support table as Markdown."""
    lines = [
        "# Supported networks",
        "",
        "Built by `python experiments/tables/support.py`; `tests/test_support.py` runs the same",
        "checks. For each network, switches attach to all groups, one step of inference runs, a",
        "random plan removes 30% of the units, the smaller network runs forward and backward in",
        "training mode, and its outputs keep their shapes. In evaluation mode the masked, the",
        "folded and the smaller network agree within 1e-5 of the largest output where groups are",
        "exact (last column: the largest difference found, float32). A group is inexact where a",
        "normalisation takes its statistics over channels: they change when channels leave.",
        "*Prunable* is the share of all parameters that leaves when every group keeps one unit.",
        "",
        "| network | groups | units | prunable | exact groups | inexact groups | frozen layers "
        "| difference |",
        "|---|---:|---:|---:|---:|---|---:|---:|",
    ]
    for row in rows:
        inexact = ", ".join(f"{n} ({reason})" for reason, n in row.inexact.items())
        lines.append(
            f"| {row.name} | {row.groups} | {row.units:,} | {row.prunable:.1%} | {row.exact} "
            f"| {inexact or '0'} | {row.frozen} | {row.difference:.0e} |"
        )
    lines += ["", "Refused:", ""]
    lines += [f"- {name}: {refusal(name)}" for name in REFUSED]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page([check(name) for name in CASES]))
