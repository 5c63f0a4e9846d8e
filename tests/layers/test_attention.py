"""Own attention = that of PyTorch and torchvision; heads leave exactly; what needs all heads."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.maxvit import RelativePositionalMultiHeadAttention
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

import bayesprune as bp
from bayesprune import layers
from bayesprune.cost import CostModel, cost
from bayesprune.gating import GatedNetwork
from bayesprune.layers.attention import fit_heads, heads_separated, separate_heads

MASK = torch.ones(5, 5, dtype=torch.bool).triu(1)
PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])


def liven(network: nn.Module) -> nn.Module:
    for name, parameter in network.named_parameters():
        if not name.endswith("weight"):
            nn.init.normal_(parameter, 0, 0.3)
    return network.eval()


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "masks",
    [
        {},
        {"attn_mask": MASK},
        {"attn_mask": MASK, "is_causal": True},
        {"key_padding_mask": PADDING},
        {"attn_mask": torch.zeros(5, 5).masked_fill(MASK, -9.0), "key_padding_mask": PADDING * 1.0},
    ],
)
@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True}, {"need_weights": True}])
def test_multihead_attention_is_that_of_pytorch(batch_first, bias, masks, options) -> None:
    options = dict(options)
    call = {"need_weights": options.pop("need_weights", False), **masks}
    layer = liven(nn.MultiheadAttention(8, 4, bias=bias, batch_first=batch_first, **options))
    x = torch.randn(2, 5, 8) if batch_first else torch.randn(5, 2, 8)
    expected = layer(x, x, x, **call)
    separate_heads(layer)
    assert type(layer) is layers.MultiheadAttention
    torch.testing.assert_close(layer(x, x, x, **call), expected)
    fit_heads(layer)
    assert type(layer) is nn.MultiheadAttention


def test_unbatched_cross_and_trained_attention() -> None:
    layer = liven(nn.MultiheadAttention(8, 4, dropout=0.5))
    own = copy.deepcopy(layer)
    separate_heads(own)
    x, y = torch.randn(5, 8), torch.randn(3, 8)
    for args in ((x, x, x), (x, y, y)):
        out = own(*args, need_weights=False)[0]
        torch.testing.assert_close(out, layer(*args, need_weights=False)[0])
    own.train()
    assert not torch.equal(own(x, x, x, need_weights=False)[0], own(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("kind", [ShiftedWindowAttention, ShiftedWindowAttentionV2])
@pytest.mark.parametrize(
    ("window", "shift", "size"),
    [
        ([2, 2], [0, 0], (4, 4)),
        ([2, 3], [1, 1], (6, 6)),
        ([3, 2], [1, 1], (4, 7)),  # padded
        ([4, 2], [2, 1], (4, 6)),  # no shift along the first
        ([4, 2], [2, 1], (8, 2)),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_window_attention_is_that_of_torchvision(kind, window, shift, size, bias) -> None:
    layer = liven(kind(8, window, shift, 4, qkv_bias=bias, proj_bias=bias))
    x = torch.randn(2, *size, 8)
    expected = layer(x)
    with heads_separated(layer):
        assert type(layer) is not kind
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    assert type(layer) is kind


def test_relative_positional_attention_is_that_of_torchvision() -> None:
    layer = liven(RelativePositionalMultiHeadAttention(8, 2, 9))
    x = torch.randn(2, 3, 9, 8)
    expected = layer(x)
    separate_heads(layer)
    torch.testing.assert_close(layer(x), expected)


class Block(nn.Module):
    """Attention between two linear layers."""

    def __init__(self, attention: nn.Module, **call: Any) -> None:
        super().__init__()
        self.first, self.attention, self.last = nn.Linear(3, 8), attention, nn.Linear(8, 2)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if isinstance(self.attention, nn.MultiheadAttention):
            return self.last(self.attention(x, x, x, **self.call)[0])
        return self.last(self.attention(x))


def blocks() -> dict[str, tuple[nn.Module, Tensor, str]]:
    def mha(**options: Any) -> nn.Module:
        return Block(nn.MultiheadAttention(8, 4, **options), need_weights=False)

    windows = ([2, 2], [1, 1], 4)
    return {
        "first": (mha(batch_first=True), torch.randn(3, 5, 3), "attention"),
        "second": (mha(), torch.randn(5, 3, 3), "attention"),
        "plain": (mha(bias=False, batch_first=True), torch.randn(3, 5, 3), "attention"),
        "swin": (Block(ShiftedWindowAttention(8, *windows)), torch.randn(3, 5, 4, 3), "qkv"),
        "swin2": (Block(ShiftedWindowAttentionV2(8, *windows)), torch.randn(3, 5, 4, 3), "qkv"),
        "maxvit": (
            Block(RelativePositionalMultiHeadAttention(8, 2, 9)),
            torch.randn(3, 4, 9, 3),
            "to_qkv",
        ),
    }


@pytest.mark.parametrize("name", ["first", "second", "plain", "swin", "swin2", "maxvit"])
def test_heads_leave_exactly(name: str, tmp_path) -> None:
    network, x, made_by = blocks()[name]
    liven(network)
    groups = bp.trace_groups(network, x)
    heads = "attention" if made_by == "attention" else f"attention.{made_by}"
    assert groups.sizes[heads] == 4
    assert groups[heads].exact
    columns = [s for s in groups[heads].slices if s.role == "consumer"]
    assert [s.units.tolist() for s in columns] == [[0, 0, 1, 1, 2, 2, 3, 3]]

    kept = {key: list(range(size)) for key, size in groups.sizes.items()}
    kept |= {heads: [0, 2, 3]} | ({"first": [0, 1, 3, 6, 7]} if "first" in groups else {})
    plan = bp.PruningPlan(kept, groups.sizes)
    small = bp.remove_channels(network, plan, x).eval()
    gated = GatedNetwork(network, groups).eval()
    masked = gated(x, plan.masks())
    torch.testing.assert_close(small(x), masked)
    with torch.no_grad():  # where PyTorch would take its fused path
        torch.testing.assert_close(small(x), masked)
    folded = gated.fold(plan.masks())
    torch.testing.assert_close(folded(x), masked)
    assert [type(m) for m in folded.modules()] == [type(m) for m in network.modules()]
    assert not torch.allclose(masked, network(x), rtol=1e-2)
    if name != "second":  # there positions come first
        assert cost(small, x) == CostModel(groups)(kept)
    bp.save_pruned(tmp_path / "small.safetensors", small, plan)
    torch.manual_seed(1)
    again = bp.load_pruned(tmp_path / "small.safetensors", blocks()[name][0]).eval()
    assert torch.equal(again(x), small(x))
    twice = bp.trace_groups(small, x)
    assert twice.sizes[heads] == 3

    # A table of positions is there once, so its network takes no gates per example.
    inner = [key for key in groups if "cpb_mlp" not in key]
    gates = {key: torch.rand(3, groups.sizes[key]) for key in inner}
    if name != "second":  # where examples do not come first, gates are for the batch
        rows = [
            gated(x[i : i + 1], {key: gate[i] for key, gate in gates.items()}) for i in range(3)
        ]
        torch.testing.assert_close(gated(x, gates), torch.cat(rows))


def test_costs_of_heads_are_those_of_the_smaller_network() -> None:
    network, x, _ = blocks()["first"]
    groups = bp.trace_groups(network, x)
    model = CostModel(groups)
    assert groups.unit_macs == {"attention": (2 * 5 * 5 * 2,) * 4}
    curve = model.macs.curves({"attention": [1, 3, 0, 2]})("attention")
    whole = model({}).macs
    for count in range(4):
        kept = sorted({0, 1, 2, 3} - set([1, 3, 0, 2][:count]))
        assert model({"attention": kept}).macs == whole + curve[count]


@pytest.mark.parametrize(
    "network",
    [
        Block(nn.MultiheadAttention(8, 4)),  # weights, averaged over heads
        Block(nn.MultiheadAttention(8, 4, add_zero_attn=True), need_weights=False),
        Block(nn.MultiheadAttention(8, 4), need_weights=False, attn_mask=torch.zeros(20, 5, 5)),
    ],
)
def test_what_needs_all_heads_keeps_them(network: nn.Module) -> None:
    network = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 3), network)
    groups = bp.trace_groups(network, torch.randn(5, 5, 3))
    assert groups.sizes == {"0": 6, "2": 3}
    assert "keeps all heads" in groups.frozen["3.attention"]


def test_a_layer_without_some_heads_says_what_it_cannot_do() -> None:
    network, x, _ = blocks()["first"]
    plan = bp.PruningPlan({"attention": [1]}, {"attention": 4})
    attention = bp.remove_channels(network, plan, x).attention
    assert isinstance(attention, nn.MultiheadAttention)
    assert attention.num_heads == 1
    y = torch.randn(1, 5, 8)
    with pytest.raises(ValueError, match="1 heads left: expected self-attention with need_weights"):
        attention(y, y, y)


def test_the_fused_encoder_layer_is_not_taken() -> None:
    layer = nn.TransformerEncoderLayer(8, 4, 12, batch_first=True)
    network = liven(
        nn.Sequential(nn.Linear(3, 8), nn.TransformerEncoder(layer, 2), nn.Linear(8, 2))
    )
    x = torch.randn(2, 5, 3)
    groups = bp.trace_groups(network, x)
    kept = {name: list(range(0, size, 2)) for name, size in groups.sizes.items()}
    small = bp.remove_channels(network, bp.PruningPlan(kept, groups.sizes), x).eval()
    with torch.no_grad():
        fused = small(x)
    torch.testing.assert_close(fused, small(x))
