"""Penalties on single weights, masks and counts."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from bayesprune import penalties
from bayesprune.errors import ConfigError, DataError
from bayesprune.penalties import mask_weights, remaining_weights
from bayesprune.penalties._weights import multiplied
from bayesprune.training import Step, TrainConfig, train_network

WEIGHTS = ["conv1", "conv2", "conv3", "grouped", "fc1", "fc2"]


def test_all_weights_that_are_multiplied_count(network, groups) -> None:
    assert list(multiplied(network, groups)) == [f"{name}.weight" for name in WEIGHTS]


def test_values_in_words(network, groups) -> None:
    weights = multiplied(network, groups)
    flat = [w.detach().flatten() for w in weights.values()]
    l1 = sum(w.abs().sum() for w in flat)
    torch.testing.assert_close(penalties.Lasso(2.0).value(weights), 2 * l1)
    ratio = sum(w.abs().sum() / w.norm() for w in flat)
    torch.testing.assert_close(penalties.Hoyer(2.0).value(weights), 2 * ratio)
    squared = sum((w.abs().sum() / w.norm()) ** 2 for w in flat)
    torch.testing.assert_close(penalties.HoyerSquare(2.0).value(weights), 2 * squared)
    bounded = sum((1.5 * w.abs() / (0.5 + w.abs())).sum() for w in flat)
    got = penalties.TransformedLasso(2.0, a=0.5).value(weights)
    torch.testing.assert_close(got, 2 * bounded)
    # A large a is the lasso, a small one counts.
    torch.testing.assert_close(penalties.TransformedLasso(1.0, a=1e6).value(weights), l1)
    number = sum(len(w) for w in flat)
    count = penalties.TransformedLasso(1.0, a=1e-9).value(weights).item()
    assert count == pytest.approx(number, rel=1e-3)


def test_lasso_thresholds_softly(network, groups) -> None:
    weights = multiplied(network, groups)
    before = {name: w.detach().clone() for name, w in weights.items()}
    with torch.no_grad():
        penalties.Lasso(0.5).after_step(weights, {}, Step(0, 1, 1, 0.1))
    for name, weight in weights.items():
        expected = before[name].sign() * (before[name].abs() - 0.05).clamp_min(0)
        assert (expected == 0).any()
        torch.testing.assert_close(weight.detach(), expected)


def test_balanced_factors_are_the_lasso(network, groups) -> None:
    x, expected = torch.randn(3, 1, 2, 2), copy.deepcopy(network)
    l1 = penalties.Lasso(0.7).value(multiplied(expected, groups))
    task = penalties.ElementSpred(0.7).task(network, groups, [])
    torch.testing.assert_close(task.value(), l1)
    torch.testing.assert_close(task.eval()(x), expected.eval()(x))
    plain, _ = task.result()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name])


def test_snip_keeps_the_most_sensitive_weights(network, groups, data) -> None:
    batch = data[:]
    trained = copy.deepcopy(network).train()
    loss = F.cross_entropy(trained(batch[0]), batch[1])
    weights = multiplied(trained, groups)
    grads = torch.autograd.grad(loss, list(weights.values()))
    sizes = torch.cat(
        [(w * g).abs().flatten() for w, g in zip(weights.values(), grads, strict=True)]
    )
    count = round(0.3 * len(sizes))
    bar = sizes.sort(descending=True).values[count - 1]
    task = penalties.ElementSNIP(keep=0.3).task(network, groups, [batch])
    kept = torch.cat([w.detach().flatten() != 0 for w in multiplied(network, groups).values()])
    assert torch.equal(kept, sizes >= bar)
    with torch.no_grad():
        network.fc1.weight += 1.0
    task.after_step(Step(0, 2, 2, 0.1))
    again = torch.cat([w.detach().flatten() != 0 for w in multiplied(network, groups).values()])
    assert not (again & ~kept).any()
    with pytest.raises(DataError, match="the loader is empty"):
        penalties.ElementSNIP().task(network, groups, [])
    with pytest.raises(DataError, match=r"expected batches \(inputs, targets\)"):
        penalties.ElementSNIP().task(network, groups, [batch[0]])


def test_masks_follow_each_layers_spread_and_last_through_training(
    network, groups, data, fabric
) -> None:
    with torch.no_grad():
        network.fc2.weight[0] = 0
        network.conv3.weight *= 100  # only the spread within a layer matters
    before = copy.deepcopy(network.state_dict())
    masked = mask_weights(network, 0.8)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    table = remaining_weights(masked).set_index("layer")
    assert list(table.index) == [*WEIGHTS, "total"]
    for name in WEIGHTS:
        weight = before[f"{name}.weight"]
        kept = (weight.abs() >= 0.8 * weight.std(correction=0)) & (weight != 0)
        assert table.loc[name, "remaining"] == kept.sum()
        assert table.loc[name, "of"] == weight.numel()
    assert table.loc["total", "remaining"] == table["remaining"][:-1].sum()
    assert table.loc["total", "share"] == pytest.approx(
        table["remaining"][:-1].sum() / table["of"][:-1].sum()
    )
    config = TrainConfig(epochs=2, learning_rate=0.01)
    train_network(masked, DataLoader(data, 6), config, fabric=fabric, progress=False)
    assert remaining_weights(masked).equals(table.reset_index())
    assert not torch.equal(masked.fc1.weight_orig, before["fc1.weight"])


def test_bad_arguments() -> None:
    with pytest.raises(ConfigError, match="mask_weights.multiple: expected a finite number"):
        mask_weights(nn.Linear(2, 2), -1.0)
    with pytest.raises(ConfigError, match="expected convolutions or linear layers, got none"):
        remaining_weights(nn.ReLU())
