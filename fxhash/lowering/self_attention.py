"""Attention of `torch.nn` written out, so that its projections may be factored: in training, and in exports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F

Project = Callable[[Tensor, Any, Tensor | None], Tensor]


def attention(
    project: Project,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim: int,
    heads: int,
    in_weight: Any,
    in_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout: float,
    out_weight: Any,
    out_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None] | None:
    """`F.multi_head_attention_forward` of one sequence with itself, whose weights nobody asks for.

    Args:
        project: a linear layer, of an input, a weight and a bias.

    The others are those of `F.multi_head_attention_forward`: inputs of shape `(length, batch, features)`.

    Returns:
        The output of shape `(length, batch, features)` and None; None alone for what is not covered here.
    """
    is_plain = query is key is value and query.dim() == 3 and not (training or need_weights or add_zero_attn)
    further = (bias_k, bias_v, key_padding_mask, others.get("static_k"), others.get("static_v"))
    if not is_plain or others.get("use_separate_proj_weight") or any(each is not None for each in further):
        return None
    projected = project(query, in_weight, in_bias)
    if projected.shape[-1] != 3 * embed_dim:
        return None
    if attn_mask is not None and attn_mask.dim() == 3:
        attn_mask = attn_mask.view(query.shape[1], heads, *attn_mask.shape[1:])
    return project(attended(projected, heads, attn_mask), out_weight, out_bias), None


def attended(projected: Tensor, heads: int, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
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
