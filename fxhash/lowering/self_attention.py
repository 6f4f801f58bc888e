"""Attention of `torch.nn` written out, so that its projections may be factored: in training, and in exports."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim: int,
    heads: int,
    in_weight: Tensor | None,
    in_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout: float,
    out_weight: Tensor,
    out_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    *further: Tensor | bool | None,
    is_causal: bool = False,
    **others: Tensor | bool | None,
) -> tuple[Tensor, None] | None:
    """`F.multi_head_attention_forward` of sequences with themselves, whose weights nobody asks for.

    Its two projections are calls of `F.linear`, which a weight's class may take over.

    Args:
        The same: inputs of shape `(length, batch, features)`, masks that are boolean or added.

    Returns:
        The output of shape `(length, batch, features)` and None; None alone for what is not covered here.
    """
    is_plain = query is key is value and query.dim() == 3 and not (need_weights or add_zero_attn)
    if not is_plain or use_separate_proj_weight or in_weight is None or in_weight.shape != (3 * embed_dim, embed_dim):
        return None
    if is_causal and attn_mask is None:
        return None
    if any(isinstance(each, Tensor) for each in (bias_k, bias_v, *further, *others.values())):
        return None
    length, batch = query.shape[:2]
    projected = F.linear(query, in_weight, in_bias)
    mask = _mask(attn_mask, key_padding_mask, (batch, heads, length), projected.dtype)
    mixed = _attended(projected, heads, mask, dropout if training else 0.0)
    return F.linear(mixed, out_weight, out_bias), None


def _mask(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, sizes: tuple[int, int, int], dtype: torch.dtype
) -> Tensor | None:
    """Both masks as one that is added: of the shape `(batch or 1, heads or 1, length or 1, length)`."""
    batch, heads, length = sizes
    added = []
    if attn_mask is not None:
        added.append(_additive(attn_mask, dtype).view(-1, heads if attn_mask.dim() == 3 else 1, length, length))
    if key_padding_mask is not None:
        added.append(_additive(key_padding_mask, dtype).view(batch, 1, 1, length))
    return sum(added[1:], added[0]) if added else None


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype is not torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, -math.inf)


def _attended(projected: Tensor, heads: int, mask: Tensor | None, dropout: float) -> Tensor:
    """What the heads of self-attention give, between its two projections.

    Args:
        projected: queries, keys and values one after the other; shape `(length, batch, 3 * features)`.
        heads: how many.
        mask: broadcasts to shape `(batch, heads, length, length)`.
        dropout: as of `F.scaled_dot_product_attention`.

    Returns:
        Shape `(length, batch, features)`.
    """
    length, batch, size = projected.shape
    # Each of shape `(batch, heads, length, size of a head)`.
    apart = projected.reshape(length, batch, 3, heads, -1).permute(2, 1, 3, 0, 4)
    of_heads = F.scaled_dot_product_attention(apart[0], apart[1], apart[2], attn_mask=mask, dropout_p=dropout)
    return of_heads.permute(2, 0, 1, 3).reshape(length, batch, size // 3)
