import subprocess
import sys

import pytest
import torch
from torch import nn

import bayesprune as bp
from bayesprune.errors import CheckpointError


@pytest.fixture
def pruned():
    network = bp.models.create("resnet20").eval()
    image = torch.randn(2, 3, 32, 32)
    groups = bp.trace_groups(network, image)
    scores = bp.criteria.Random().scores(network, groups, [])
    plan = bp.select(scores, bp.KeepFraction(0.5), groups=groups)
    return bp.remove_channels(network, plan, image), plan, image


def test_round_trip(tmp_path, pruned):
    small, plan, image = pruned
    bp.save_pruned(tmp_path / "s.safetensors", small, plan)
    again = bp.load_pruned(tmp_path / "s.safetensors", bp.models.create("resnet20")).eval()
    assert torch.equal(again(image), small(image))
    assert bp.cost(again, image) == bp.cost(small, image) == plan.cost


def test_in_a_new_process(tmp_path, pruned):
    small, plan, _ = pruned
    bp.save_pruned(tmp_path / "s.safetensors", small, plan)
    code = (
        "import bayesprune as bp, torch, sys\n"
        "net = bp.load_pruned(sys.argv[1], bp.models.create('resnet20')).eval()\n"
        "print(net(torch.ones(1, 3, 32, 32)).sum().item())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "s.safetensors")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    with torch.no_grad():
        expected = small(torch.ones(1, 3, 32, 32)).sum().item()
    assert float(result.stdout) == pytest.approx(expected)


def test_another_class_is_refused_and_left_alone(tmp_path, pruned):
    small, plan, _ = pruned
    bp.save_pruned(tmp_path / "s.safetensors", small, plan)
    other = bp.models.create("lenet5")
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(CheckpointError, match="LeNet5"):
        bp.load_pruned(tmp_path / "s.safetensors", other)
    assert all(torch.equal(before[k], v) for k, v in other.state_dict().items())


def test_a_larger_network_is_refused(tmp_path):
    network = bp.models.create("lenet5")
    sizes = {"conv1": 20, "conv2": 50, "fc1": 500}
    plan = bp.PruningPlan({n: list(range(s)) for n, s in sizes.items()}, sizes)
    bp.save_pruned(tmp_path / "s.safetensors", network, plan)
    with pytest.raises(CheckpointError, match=r"conv1\.(weight|bias): expected at most"):
        bp.load_pruned(tmp_path / "s.safetensors", bp.models.create("lenet5", widths=(4, 9, 99)))


def test_shared_parameters_stay_shared(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(6, 6)
            self.b = nn.Linear(6, 6)
            self.b.weight = self.a.weight
            self.c = nn.Linear(6, 2)

        def forward(self, x):
            return self.c(self.b(self.a(x)))

    network = Tied()
    small = Tied()
    plan = bp.PruningPlan({"a": [*range(6)]}, {"a": 6})
    bp.save_pruned(tmp_path / "s.safetensors", network, plan)
    again = bp.load_pruned(tmp_path / "s.safetensors", small)
    assert again.a.weight is again.b.weight
    x = torch.randn(3, 6)
    assert torch.equal(again(x), network(x))

    rewrite(tmp_path / "s.safetensors", {"b.weight": torch.zeros(6, 6)})
    with pytest.raises(CheckpointError, match=r"b\.weight: expected the tensor of a\.weight"):
        bp.load_pruned(tmp_path / "s.safetensors", Tied())


def rewrite(file, tensors, **metadata):
    """Change tensors and metadata of a file."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() | metadata
    save_file(load_file(file) | tensors, file, metadata)


class Rare(nn.Module):
    """What `state_dict` and the tensors of a layer do not tell."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, bias=False)
        self.norm = nn.InstanceNorm2d(8)
        self.register_buffer("shift", torch.randn(8, 1, 1), persistent=False)
        self.depthwise = nn.Conv2d(8, 8, 1, groups=8)
        self.blocks = nn.GroupNorm(4, 8)
        self.plain = nn.LayerNorm(4, elementwise_affine=False)
        self.up = nn.ConvTranspose2d(8, 6, 2)
        self.linear = nn.Linear(6, 2)

    def forward(self, x):
        x = self.blocks(self.depthwise(self.norm(self.conv(x)) + self.shift))
        return self.linear(self.plain(self.up(x)[..., :4]).mean((2, 3)))


@pytest.fixture
def rare(tmp_path):
    network, x = Rare().eval(), torch.randn(2, 1, 7, 7)
    # The group norm removes its channels in pairs.
    plan = bp.PruningPlan({"conv": [0, 2], "up": [1, 2]}, {"conv": 4, "up": 6})
    small = bp.remove_channels(network, plan, x)
    bp.save_pruned(tmp_path / "s.safetensors", small, plan)
    return tmp_path / "s.safetensors", small, x


@pytest.mark.parametrize("strict", [False, True])
def test_sizes_that_no_parameter_tells(rare, strict):
    file, small, x = rare
    again = bp.load_pruned(file, Rare().eval(), x if strict else None)
    assert torch.equal(again(x), small(x))
    assert str(again) == str(small)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"linear.weight": torch.zeros(1, 2)}, r"linear\.bias: expected \(1,\)"),
        ({"up.bias": torch.zeros(3)}, r"up\.bias: expected \(2,\) .*got \(3,\)"),
        ({"depthwise.bias": torch.zeros(5)}, r"depthwise\.bias"),
        ({"blocks.bias": torch.zeros(2)}, r"blocks\.bias"),
        (
            {"blocks.weight": torch.zeros(3), "blocks.bias": torch.zeros(3)},
            "blocks: expected whole blocks of 2 channels, got 3",
        ),
        (
            {"up.weight": torch.zeros(4, 5, 2, 2), "up.bias": torch.zeros(5)},
            r"up\.weight: expected 2 channels as in the plan, got 5",
        ),
        ({"shift": torch.zeros(9, 1, 1)}, "shift: expected at most"),
        ({"linear.weight": torch.zeros(2, 2).half()}, "float32"),
    ],
)
def test_layers_that_contradict_themselves(rare, tensors, said):
    file, _, _ = rare
    rewrite(file, tensors)
    network = Rare()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"s.safetensors: not a pruned Rare .*{said}"):
        bp.load_pruned(file, network)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_layers_that_contradict_each_other(rare):
    file, _, x = rare
    rewrite(file, {"linear.weight": torch.zeros(2, 5)})
    network = Rare()
    with pytest.raises(CheckpointError, match=r"linear\.weight: expected \(2, 2\) as the plan"):
        bp.load_pruned(file, network, x)
    assert network.linear.weight.shape == (2, 6)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"plan": "{}"}, "plan: expected the JSON"),
        ({"plan": bp.PruningPlan({"stem": [0]}, {"stem": 2}).to_json()}, "stem: the plan prunes"),
        ({"features": "{}"}, "features of .'norm'"),
        ({"features": '{"norm": 9}'}, "features of .'norm'"),
        ({"features": "{"}, "features of .'norm'"),
    ],
)
def test_metadata_of_another_network(rare, metadata, said):
    file, _, _ = rare
    rewrite(file, {}, **metadata)
    with pytest.raises(CheckpointError, match=said):
        bp.load_pruned(file, Rare())


@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign"])
def test_damaged_files(tmp_path, pruned, damage):
    small, plan, _ = pruned
    file = tmp_path / "s.safetensors"
    if damage == "truncated":
        bp.save_pruned(file, small, plan)
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "foreign":
        from safetensors.torch import save_file

        save_file({"x": torch.ones(1)}, file)
    with pytest.raises(CheckpointError, match=r"s\.safetensors"):
        bp.load_pruned(file, bp.models.create("resnet20"))


def test_norms_without_parameters(tmp_path):
    def build():
        norms = nn.LayerNorm(4, elementwise_affine=False), nn.GroupNorm(2, 4, affine=False)
        return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4), *norms)

    x = torch.randn(2, 3)
    plan = bp.PruningPlan({"0": [0, 4]}, {"0": 6})
    small = bp.remove_channels(build(), plan, x)
    bp.save_pruned(tmp_path / "s.safetensors", small, plan)
    assert torch.equal(bp.load_pruned(tmp_path / "s.safetensors", build())(x), small(x))
