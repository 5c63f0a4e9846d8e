"""Attention whose heads can leave one by one.

The attention layers of PyTorch and torchvision take the width of all heads together for the width
of their input, and pass the projections' weights to a function instead of calling the layers. The
classes here compute the same with any number of heads and call what reads the heads, so that gates
act there. They have the same parameters under the same names: a layer changes to one of them, and
back, by its class alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.maxvit import RelativePositionalMultiHeadAttention
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2


def _split(x: Tensor, head_dim: int) -> Tensor:
    """From ``(..., L, heads * head_dim)`` to ``(..., heads, L, head_dim)``."""
    return x.unflatten(-1, (-1, head_dim)).transpose(-3, -2)


def _join(x: Tensor) -> Tensor:
    return x.transpose(-3, -2).flatten(-2)


def _position_bias(table: Tensor, index: Tensor, tokens: int) -> Tensor:
    """Shape ``(heads, tokens, tokens)``, from a table with one column per head."""
    return F.embedding(index.reshape(tokens, tokens), table).permute(2, 0, 1)


def _additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """A mask to be added: in a boolean one of `nn.MultiheadAttention`, True means masked."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -torch.inf)


class MultiheadAttention(nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` with some of its heads.

    Self-attention without its weights (``need_weights=False``), as in `nn.TransformerEncoderLayer`
    and in torchvision's vision transformer. Any other use needs all heads.
    """

    # Always False: the fused encoder layer of PyTorch would take the heads to be complete.
    _qkv_same_embed_dim = property(lambda self: False, lambda self, value: None)  # type: ignore[assignment]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        plain = query is key and key is value and not need_weights
        extra = self.bias_k is not None or self.add_zero_attn or self.in_proj_weight is None
        per_head = attn_mask is not None and attn_mask.ndim == 3
        if not plain or extra or per_head:
            if not _whole(self):
                raise ValueError(
                    f"attention with {self.num_heads} heads left: expected self-attention with "
                    "need_weights=False and an attn_mask of shape (L, L), as when it was traced"
                )
            return self._as_pytorch(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights,
                is_causal,
            )  # fmt: skip
        first = 0 if self.batch_first else 1
        x = query.unsqueeze(first) if query.ndim == 2 else query
        x = x if self.batch_first else x.transpose(0, 1)
        q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        mask, padding = _additive(attn_mask, x), _additive(key_padding_mask, x)
        if padding is not None:
            padding = padding.reshape(len(x), 1, 1, -1)
            mask = padding if mask is None else mask + padding
        out = F.scaled_dot_product_attention(
            _split(q, self.head_dim),
            _split(k, self.head_dim),
            _split(v, self.head_dim),
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
        )
        out = self.out_proj(_join(out))
        out = out if self.batch_first else out.transpose(0, 1)
        return (out.squeeze(first) if query.ndim == 2 else out), None

    def _as_pytorch(self, *args: Any) -> tuple[Tensor, Tensor | None]:
        """All heads, as PyTorch computes them; it looks at what the property above hides."""
        own = type(self)
        _become(self, nn.MultiheadAttention)
        try:
            return nn.MultiheadAttention.forward(self, *args)
        finally:
            _become(self, own)


class WindowAttention(ShiftedWindowAttention):
    """torchvision's attention in shifted windows (Swin) with some of its heads."""

    def get_relative_position_bias(self) -> Tensor:
        tokens = self.window_size[0] * self.window_size[1]
        index = self.relative_position_index
        assert isinstance(index, Tensor)
        return _position_bias(self.relative_position_bias_table, index, tokens).unsqueeze(0)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        dropout = self.attention_dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        high, wide = self.window_size
        x = F.pad(x, (0, 0, 0, -width % wide, 0, -height % high))
        size = x.shape[1:3]
        # There is nothing to shift where one window holds everything.
        pairs = zip(self.window_size, size, self.shift_size, strict=True)
        shift = [0 if window >= length else by for window, length, by in pairs]
        if any(shift):
            x = x.roll((-shift[0], -shift[1]), (1, 2))
        qkv = self.qkv(self._windows(x))  # (N, windows, tokens, 3 * heads * head_dim)
        bias = self.get_relative_position_bias()
        if any(shift):
            bias = bias + self._border(size, shift, x)
        head_dim = qkv.shape[-1] // 3 // bias.shape[-3]
        q, k, v = (_split(part, head_dim) for part in qkv.chunk(3, -1))
        x = _join(self._attend(q, k, v, bias))
        x = F.dropout(self.proj(x), self.dropout, self.training)
        x = x.unflatten(2, (high, wide)).unflatten(1, (size[0] // high, size[1] // wide))
        x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if any(shift):
            x = x.roll((shift[0], shift[1]), (1, 2))
        return x[:, :height, :width, :].contiguous()

    def _windows(self, x: Tensor) -> Tensor:
        """From ``(N, H, W, C)`` to ``(N, windows, tokens, C)``."""
        high, wide = self.window_size
        x = x.unflatten(2, (x.shape[2] // wide, wide)).unflatten(1, (x.shape[1] // high, high))
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def _border(self, size: torch.Size, shift: list[int], like: Tensor) -> Tensor:
        """-100 between tokens that are neighbours by the shift only, ``(windows, 1, L, L)``."""
        label = torch.zeros(1, 1, dtype=torch.long, device=like.device)
        for axis, (length, window, by) in enumerate(
            zip(size, self.window_size, shift, strict=True)
        ):
            place = torch.arange(length, device=like.device)
            part = (place >= length - window).long() + (place >= length - by)
            label = label * 3 + (part * bool(by)).unsqueeze(1 - axis)
        label = self._windows(label[None, :, :, None]).squeeze(-1).squeeze(0)
        differs = label.unsqueeze(1) != label.unsqueeze(2)
        return torch.where(differs, -100.0, 0.0).to(like.dtype).unsqueeze(1)


class WindowAttentionV2(WindowAttention, ShiftedWindowAttentionV2):
    """torchvision's cosine attention in shifted windows (Swin V2) with some of its heads."""

    def get_relative_position_bias(self) -> Tensor:
        return ShiftedWindowAttentionV2.get_relative_position_bias(self)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        if self.qkv.bias is not None:  # keys have none
            offset = self.qkv.bias.chunk(3)[1]
            k = k - offset.unflatten(-1, (-1, k.shape[-1])).unsqueeze(1)
        q = F.normalize(q, dim=-1) * self.logit_scale.clamp(max=4.605170185988092).exp()  # log 100
        return F.scaled_dot_product_attention(
            q, F.normalize(k, dim=-1), v, attn_mask=bias, scale=1.0,
            dropout_p=self.attention_dropout if self.training else 0.0,
        )  # fmt: skip


class RelativePositionalAttention(RelativePositionalMultiHeadAttention):
    """torchvision's attention of MaxViT with some of its heads."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (_split(part, self.head_dim) for part in self.to_qkv(x).chunk(3, -1))
        index, tokens = self.relative_position_index, self.max_seq_len
        assert isinstance(index, Tensor)
        bias = _position_bias(self.relative_position_bias_table, index, tokens)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale_factor)
        return self.merge(_join(out))


_OWN: dict[type[nn.Module], type[nn.Module]] = {
    nn.MultiheadAttention: MultiheadAttention,
    ShiftedWindowAttention: WindowAttention,
    ShiftedWindowAttentionV2: WindowAttentionV2,
    RelativePositionalMultiHeadAttention: RelativePositionalAttention,
}
_ORIGINAL = {own: original for original, own in _OWN.items()}


def _become(module: Any, kind: type[nn.Module]) -> None:
    module.__class__ = kind


def separate_heads(network: nn.Module) -> None:
    """Let the attention layers of a network compute as the classes here do, in place."""
    for module in network.modules():
        if type(module) in _OWN:
            _become(module, _OWN[type(module)])


@contextmanager
def heads_separated(network: nn.Module) -> Iterator[None]:
    """`separate_heads` for a while."""
    classes = {module: type(module) for module in network.modules()}
    separate_heads(network)
    try:
        yield
    finally:
        for module, original in classes.items():
            if type(module) is not original:
                _become(module, original)


def _projection(module: nn.Module) -> Tensor | None:
    """The weight that makes queries, keys and values of the input."""
    if isinstance(module, nn.MultiheadAttention):
        return module.in_proj_weight
    layer = (
        module.to_qkv if isinstance(module, RelativePositionalMultiHeadAttention) else module.qkv
    )
    assert isinstance(layer, nn.Module)
    return layer.weight  # type: ignore[return-value]


def _whole(module: nn.Module) -> bool:
    """Whether an attention layer has the heads that its original class counts on."""
    weight = _projection(module)
    return weight is None or weight.shape[0] == 3 * weight.shape[1]


def fit_heads(module: nn.Module) -> None:
    """Note the number of heads that an attention layer has; any other layer stays as it is.

    Its class is that of PyTorch or torchvision where this is able to compute it, else one from
    here.
    """
    if isinstance(module, nn.MultiheadAttention):
        if module.in_proj_weight is not None:
            module.num_heads = len(module.in_proj_weight) // 3 // module.head_dim
    elif isinstance(module, ShiftedWindowAttentionV2):
        module.num_heads = len(module.logit_scale)
    elif isinstance(module, ShiftedWindowAttention):
        module.num_heads = module.relative_position_bias_table.shape[1]
    elif isinstance(module, RelativePositionalMultiHeadAttention):
        module.n_heads = module.relative_position_bias_table.shape[1]
    kind = type(module)
    if kind in _OWN and not _whole(module):
        _become(module, _OWN[kind])
    elif kind in _ORIGINAL and _whole(module):
        _become(module, _ORIGINAL[kind])
