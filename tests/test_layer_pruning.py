import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn
from torchvision.models import VisionTransformer

import bayesprune as bp
from bayesprune import models
from bayesprune.errors import CheckpointError, DataError, PlanError
from bayesprune.layer_pruning import (
    average_ranks,
    imprinting,
    layer_scores,
    leaving_order,
    removable_layers,
    remove_layers,
)
from bayesprune.layers import SelectFeatures
from bayesprune.plan import PruningPlan
from bayesprune.selection import ChannelScores

IMAGE = (2, 3, 16, 16)


class Chain(nn.Module):
    """Layers with and without followers; the last activation serves two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(4)
        self.act2 = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.conv3 = nn.Conv2d(4, 4, 1)
        self.shared = nn.ReLU()
        self.conv4 = nn.Conv2d(4, 4, 3, padding=1, stride=2)
        self.fc1 = nn.Linear(4, 4)
        self.fc2 = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act2(self.norm2(self.conv2(F.relu(self.conv1(x))))))
        x = self.shared(self.conv4(self.shared(self.conv3(x))))
        return self.fc2(F.relu(self.fc1(x.mean((2, 3)))))


def whole(network: nn.Module, x: Tensor) -> PruningPlan:
    sizes = bp.trace_groups(network, x).sizes
    return PruningPlan({n: list(range(size)) for n, size in sizes.items()}, sizes)


def set_statistics(network: nn.Module) -> nn.Module:
    """Norms that do something in evaluation mode."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return network.eval()


# which ------------------------------------------------------------------------------------------


def test_blocks_of_a_residual_network() -> None:
    found = removable_layers(models.create("resnet20"), torch.randn(1, 3, 32, 32))
    names = [f"layer{i}.{j}" for i in (1, 2, 3) for j in range(3)]
    assert list(found) == [name for name in names if name not in ("layer2.0", "layer3.0")]
    assert all(paths == (name,) for name, paths in found.items())


def test_blocks_before_activation() -> None:
    found = removable_layers(models.create("wrn28_10", depth=16, width=2), torch.randn(IMAGE))
    assert list(found) == ["layer1.1", "layer2.1", "layer3.1"]


def test_layers_of_a_plain_network() -> None:
    found = removable_layers(models.create("vgg16"), torch.randn(1, 3, 32, 32))
    convs = [
        f"{i}_{j}" for i, n in ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3)) for j in range(2, n + 1)
    ]
    convs.insert(convs.index("5_2"), "5_1")  # 512 to 512 as well
    expected = {
        f"features.conv{c}": tuple(f"features.{kind}{c}" for kind in ("conv", "bn", "relu"))
        for c in convs
    }
    assert found == expected | {"fc1": ("fc1", "relu1")}


def test_selections_of_features_are_no_layers() -> None:
    network = nn.Sequential(SelectFeatures(4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    assert list(removable_layers(network, torch.zeros(2, 4))) == ["1"]


def test_only_followers_of_their_own_go_along() -> None:
    found = removable_layers(Chain(), torch.randn(IMAGE))
    assert found == {
        "conv2": ("conv2", "norm2", "act2"),
        "conv3": ("conv3",),
        "fc1": ("fc1",),
    }


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: models.create("lenet5"), []),
        (lambda: nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 3)), ["0"]),
        (lambda: nn.Sequential(*[nn.Conv2d(1, 1, 1)] * 2), []),  # one layer, called twice
    ],
)
def test_what_else_is_found(make, expected) -> None:
    assert list(removable_layers(make(), torch.randn(1, 1, 28, 28))) == expected


def test_encoder_blocks() -> None:
    network = VisionTransformer(8, 4, 2, 2, 16, 32)
    names = ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"]
    assert list(removable_layers(network, torch.randn(1, 3, 8, 8))) == names


def test_layers_that_add_to_a_stream_stay_when_all_blocks_are_gone() -> None:
    network, x = models.create("resnet20"), torch.randn(1, 3, 32, 32)
    bare = remove_layers(network, removable_layers(network, x), x)
    assert removable_layers(bare, x) == {}


# removal ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet20", "vgg16"])
def test_a_removed_layer_is_the_identity(name) -> None:
    network, x = set_statistics(models.create(name)), torch.randn(2, 3, 32, 32)
    before = copy.deepcopy(network.state_dict())
    layers = removable_layers(network, x)
    gone = [list(layers)[1], list(layers)[-1]]
    small = remove_layers(network, gone, x)
    # The same by hooks that hand the input on.
    by_hand = copy.deepcopy(network)
    for path in [path for layer in gone for path in layers[layer]]:
        by_hand.get_submodule(path).register_forward_hook(lambda module, args, output: args[0])
    assert torch.equal(small(x), by_hand(x))
    assert not torch.equal(small(x), network(x))
    assert type(small) is type(network)
    assert not small.training
    assert bp.cost(small, x).macs < bp.cost(network, x).macs
    assert list(removable_layers(small, x)) == [n for n in layers if n not in gone]
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_a_block_with_a_zero_branch_can_go_without_a_trace() -> None:
    network, x = set_statistics(models.create("resnet20")), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for parameter in network.layer2[1].bn2.parameters():
            parameter.zero_()
    assert torch.equal(remove_layers(network, ["layer2.1"], x)(x), network(x))


def test_what_cannot_go_is_named() -> None:
    network, x = models.create("resnet20"), torch.randn(1, 3, 32, 32)
    with pytest.raises(PlanError, match=r"layer2.0, fc9: expected layers .*layer1.0, layer1.1"):
        remove_layers(network, ["layer2.0", "layer1.1", "fc9"], x)
    with pytest.raises(PlanError, match="there are none"):
        remove_layers(models.create("lenet5"), ["fc1"], torch.randn(1, 1, 28, 28))


def test_channels_go_after_layers_and_both_come_back_from_disk(tmp_path) -> None:
    network, x = set_statistics(models.create("resnet20")), torch.randn(2, 3, 32, 32)
    shallow = remove_layers(network, ["layer1.1", "layer3.2"], x)
    groups = bp.trace_groups(shallow, x)
    assert not any(name.startswith(("layer1.1", "layer3.2")) for name in groups)
    scores = bp.criteria.Magnitude().scores(shallow, groups, [])
    plan = bp.select(scores, bp.KeepFraction(0.5), groups=groups)
    small = bp.remove_channels(shallow, plan, x)
    bp.save_pruned(tmp_path / "s.safetensors", small, plan)
    for example in (None, x):
        again = bp.load_pruned(tmp_path / "s.safetensors", models.create("resnet20"), example)
        assert torch.equal(again.eval()(x), small(x))
        assert isinstance(again.layer1[1], nn.Identity)


def test_a_file_for_another_depth_leaves_the_network_alone(tmp_path) -> None:
    x = torch.randn(2, 3, 32, 32)
    small = remove_layers(models.create("resnet20"), ["layer1.1"], x)
    bp.save_pruned(tmp_path / "s.safetensors", small, whole(small, x))
    other = models.create("resnet32")
    block = other.layer1[1]
    with pytest.raises(CheckpointError, match="missing"):
        bp.load_pruned(tmp_path / "s.safetensors", other)
    assert other.layer1[1] is block
    with pytest.raises(CheckpointError, match="names of removed layers, got .*layer1.1"):
        bp.load_pruned(tmp_path / "s.safetensors", models.create("lenet5"))


# importance ---------------------------------------------------------------------------------------


def test_the_mean_over_units_that_the_layer_makes() -> None:
    network, x = models.create("resnet20"), torch.randn(1, 3, 32, 32)
    groups, layers = bp.trace_groups(network, x), removable_layers(network, x)
    scores = bp.criteria.Magnitude().scores(network, groups, [])
    found = layer_scores(scores, groups, layers)
    assert list(found) == list(layers)
    for name, value in found.items():  # channels of the stream belong to no block
        filters = network.get_submodule(f"{name}.conv1").weight.detach().flatten(1)
        assert value == pytest.approx(float(filters.norm(dim=1).mean()), rel=1e-5)
    plain = models.create("vgg16")
    groups, layers = bp.trace_groups(plain, x), removable_layers(plain, x)
    found = layer_scores(bp.criteria.Magnitude(1).scores(plain, groups, []), groups, layers)
    weight = plain.features.conv3_2.weight.detach()
    expected = float(weight.abs().flatten(1).sum(1).mean())
    assert found["features.conv3_2"] == pytest.approx(expected, rel=1e-5)


def test_a_layer_without_scores_is_named() -> None:
    network, x = models.create("resnet20"), torch.randn(1, 3, 32, 32)
    groups, layers = bp.trace_groups(network, x), removable_layers(network, x)
    some = ChannelScores({"layer1.0.conv1": torch.ones(16)}, "by hand")
    with pytest.raises(PlanError, match=r"layer1.1: no unit made by this layer"):
        layer_scores(some, groups, layers)


def embedded(output: np.ndarray) -> np.ndarray:
    """Pooled to d x d by hand, for sizes that d divides."""
    n, channels, height, width = output.shape
    d = round((512 / channels) ** 0.5)
    blocks = output.reshape(n, channels, d, height // d, d, width // d)
    return blocks.mean((3, 5)).reshape(n, -1)


def test_imprinting_by_hand() -> None:
    """Class means of pooled outputs, nearest by inner product, gain over what enters."""
    network = set_statistics(
        nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 3),
        )
    )
    x, y = torch.randn(60, 3, 8, 8), torch.randint(3, (60,))
    x[y == 0, 0] += 0.4
    x[y == 1, 1, :4] += 0.4
    train, held = (x[:40], y[:40]), (x[40:], y[40:])
    layers = removable_layers(network, x[:1])
    loader = [(x[:25], y[:25]), (x[25:40], y[25:40])]
    found = imprinting(network, layers, loader, [held])

    def accuracy(part: nn.Module) -> float:
        with torch.no_grad():
            seen, new = (embedded(part(inputs).double().numpy()) for inputs, _ in (train, held))
        means = np.stack([seen[train[1].numpy() == k].mean(0) for k in range(3)])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        return float(((new @ means.T).argmax(1) == held[1].numpy()).mean())

    expected = accuracy(network[:5]) - accuracy(network[:2])
    assert found == {"2": pytest.approx(expected)}
    assert accuracy(network[:5]) > 0.4  # more than chance, so that this means something
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_imprinting_sees_which_layer_tells_classes_apart() -> None:
    """A first layer that destroys nothing and adds nothing; a second that makes it visible."""
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        network[0].weight.copy_(torch.eye(4))
        network[1].weight.copy_(torch.tensor([100.0, 0.01, 0.01, 0.01]).diag())
        for layer in network:
            layer.bias.zero_()
    y = torch.randint(2, (400,))
    x = torch.randn(400, 4) * 20
    x[:, 0] = (2.0 * y - 1) + 0.1 * torch.randn(400)
    layers = removable_layers(network, x[:1])
    found = imprinting(network, layers, [(x[:200], y[:200])], [(x[200:], y[200:])])
    assert found["0"] == 0
    assert found["1"] > 0.1


def test_imprinting_needs_data() -> None:
    network, batch = models.create("resnet20"), (torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
    layers = removable_layers(network, batch[0])
    with pytest.raises(DataError, match="train_loader is empty"):
        imprinting(network, layers, [], [batch])
    with pytest.raises(DataError, match="held_out is empty"):
        imprinting(network, layers, [batch], [])


def test_average_ranks() -> None:
    first, second = {"a": 0.1, "b": 0.2, "c": 10.0}, {"c": 5.0, "a": 5.0, "b": 4.0}
    assert average_ranks([first, second]) == {"a": 1.75, "b": 1.5, "c": 2.75}
    for wrong in ([], [first, {"a": 1.0}]):
        with pytest.raises(PlanError, match="same layers"):
            average_ranks(wrong)


def test_layers_leave_one_by_one_and_the_rest_are_scored_again() -> None:
    network, x = set_statistics(models.create("resnet20")), torch.randn(2, 3, 32, 32)
    asked = []

    def parameters_left(network: nn.Module, layers) -> dict[str, float]:
        """Depends on what is left: the first block of the longest stage is the least."""
        asked.append(list(layers))
        stages = [name.split(".")[0] for name in layers]
        return {name: -stages.count(name.split(".")[0]) for name in layers}

    order = leaving_order(network, parameters_left, x, count=4)
    assert order == ["layer1.0", "layer1.1", "layer2.1", "layer3.1"]
    assert asked[1] == [name for name in asked[0] if name != "layer1.0"]
    assert len(asked) == 4
    assert len(leaving_order(network, parameters_left, x)) == 7


def test_one_shot_and_iterative_agree_where_layers_do_not_change_each_other() -> None:
    network, x = models.create("resnet20"), torch.randn(1, 3, 32, 32)

    def norms(network: nn.Module, layers) -> dict[str, float]:
        groups = bp.trace_groups(network, x)
        return layer_scores(bp.criteria.Magnitude().scores(network, groups, []), groups, layers)

    one_shot = norms(network, removable_layers(network, x))
    order = leaving_order(network, norms, x)
    places = [order.index(name) for name in one_shot]
    assert stats.spearmanr(list(one_shot.values()), places).statistic == pytest.approx(1)
