"""Factors in fewer bits in an ONNX file: narrow initializers, and the nodes that widen them.

They are widened by `Cast` and `Mul`, which ONNX Runtime computes once, when it loads the file. `DequantizeLinear` it
would compute in each call, or fuse with the layer's product into one that rounds its input, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxhash.errors import CheckpointError, PlanError
from fxhash.lowering.factor_store import FactorStore, StoredRows
from fxhash.smh.checks import read_dtype
from fxhash.smh.factor_bits import FactorBits, dequantize, quantize
from fxhash.smh.generator import SMHGenerator
from fxhash.storage.quantization import bits_of

# Bytes that a narrow initializer costs beside its numbers: names, sizes, nodes. A few kernels stay as they are.
_OVERHEAD = 64
# Below this version ONNX has no integers of 4 bits.
OPSET_OF_INT4 = 21


def read_onnx_dtype(dtype: object) -> torch.dtype:
    """The type to store factors in that is meant: int8, int4 or float16, or the name of one.

    Raises:
        PlanError: for any other type.
    """
    return read_dtype(dtype, ("float16", "int8", "int4"), "type to store factors in an ONNX file in")


def stores_of(model: nn.Module) -> list[FactorStore]:
    """The factors of all lowered models in a model."""
    return [module for module in model.modules() if isinstance(module, FactorStore)]


@torch.no_grad()
def round_(generator: SMHGenerator, dtype: torch.dtype) -> None:
    """Set factors to the values that they have in a file of this type, in place; those trained in few bits to these."""
    count = bits_of(dtype)
    generator.round_(None if count is None else FactorBits(count))
    if count is None:
        for factor in (*generator.left, *generator.more_left, generator.right, *generator.kernels):
            factor.copy_(factor.to(dtype))


def check_bits(stores: Iterable[FactorStore], dtype: torch.dtype) -> None:
    """Raise an error if the factors of lowered models can't be stored in a type.

    Args:
        stores: of the lowered models.
        dtype: int8, int4 or float16.

    Raises:
        PlanError: if they were trained or lowered in other bits.
        CheckpointError: if they have values that the type can't hold.
    """
    for store in stores:
        bits = store.rounded_to
        if bits is not None and bits.bits != bits_of(dtype):
            raise PlanError(
                f"dtype={dtype} would round factors that have {bits.bits} bits: export them with "
                f'dtype="int{bits.bits}", or without dtype'
            )
        for rows in store.stored_rows():
            values = rows.rows if bits_of(dtype) is not None else _trained(rows).to(dtype)
            if not bool(values.isfinite().all()):
                raise CheckpointError(f"a factor has values that {dtype} can't hold: export without dtype=...")


def narrow(graph: Any, tensors: Mapping[str, object], stores: Iterable[FactorStore], dtype: torch.dtype) -> None:
    """Store factors in fewer bits, with the nodes that compute of them what they were, in place.

    Args:
        graph: an `onnx.GraphProto`.
        tensors: what its initializers were made of, by name.
        stores: of the lowered models in it, which passed `check_bits`.
        dtype: int8, int4 or float16.
    """
    rows_at = {
        rows.rows.data_ptr(): (rows, store) for store in stores for rows in store.stored_rows() if rows.rows.numel()
    }
    initializers: list[Any] = []
    nodes: list[Any] = []
    count = bits_of(dtype)
    for tensor in graph.initializer:
        value = tensors.get(tensor.name)
        rows, store = rows_at.get(value.data_ptr() if isinstance(value, Tensor) else 0, (None, None))
        if rows is None or store is None or rows.rows.shape != tuple(tensor.dims):
            initializers.append(tensor)
            continue
        widening = _Widening(tensor.name, tensor.data_type)
        if not rows.rows.is_floating_point():
            bits = store.plan.factor_bits
            assert bits is not None
            if bits.of(rows.role).bits == 8:
                initializers.append(tensor)
                continue
            widening.pack(rows.rows.cpu(), bits)
        elif count is None:
            widening.cast(rows, dtype)
        else:
            widening.quantize(rows, (store.rounded_to or FactorBits(count)).of(rows.role))
        initializers += widening.initializers
        nodes += widening.nodes
    nodes += graph.node
    del graph.initializer[:]
    del graph.node[:]
    graph.initializer.extend(initializers)
    graph.node.extend(nodes)


def _trained(rows: StoredRows) -> Tensor:
    """Rows as they were trained."""
    values = rows.rows.detach().cpu().float()
    return torch.where(rows.scale == 0, 0, values / rows.scale)


class _Widening:
    """What an initializer becomes: narrow ones, and nodes of which the last one computes what it was.

    Args:
        name: of the initializer.
        kind: its type, as a number of ONNX.
    """

    def __init__(self, name: str, kind: int) -> None:
        self.name = name
        self.kind = kind
        self.initializers: list[Any] = []
        self.nodes: list[Any] = []

    def cast(self, rows: StoredRows, dtype: torch.dtype) -> None:
        """Store rows in a floating-point type."""
        values = _trained(rows).to(dtype)
        if rows.rows.numel() * (rows.rows.element_size() - values.element_size()) < _OVERHEAD:
            self._store_wide(values.float() * rows.scale, rows)
        else:
            self._finish(self._times(self._widened(self._stored(values)), rows.scale))

    def quantize(self, rows: StoredRows, bits: FactorBits) -> None:
        """Store rows as integers, and their steps."""
        integers, steps = quantize(_trained(rows), bits)
        count, entries = integers.shape
        if rows.rows.numel() * (rows.rows.element_size() - bits.bits / 8) - 2 * steps.numel() < _OVERHEAD:
            self._store_wide(dequantize(integers, steps, bits) * rows.scale, rows)
            return
        groups, size = steps.shape[1], bits.size(entries)
        if groups > 1:
            padded = F.pad(integers, (0, groups * size - entries)).view(count, groups, size)
            integers, steps = padded, steps.unsqueeze(2)
        widened = self._widened(self._stored_integers(integers, bits))
        if rows.scale.numel() == 1:
            widened = self._node("Mul", widened, self._widened(self._stored(steps.bfloat16())))
            widened = self._times(widened, rows.scale)
        else:
            scaled = steps * rows.scale.view(count, *[1] * (steps.dim() - 1))
            widened = self._node("Mul", widened, self._stored(scaled.float()))
        if groups > 1:
            widened = self._node("Reshape", widened, self._stored(torch.tensor([count, groups * size])))
            if groups * size > entries:
                cut = [self._stored(torch.tensor([each])) for each in (0, entries, 1)]
                widened = self._node("Slice", widened, *cut)
        self._finish(widened)

    def pack(self, integers: Tensor, bits: FactorBits) -> None:
        """Store integers that the graph takes as such of 8 bits, of which they need fewer."""
        self._node("Cast", self._stored_integers(integers, bits), to=self.kind)
        self._name_last()

    def _times(self, value: str, scale: Tensor) -> str:
        if scale.numel() == 1 and scale.item() == 1:
            return value
        return self._node("Mul", value, self._stored(scale.float()))

    def _widened(self, value: str) -> str:
        import onnx

        return self._node("Cast", value, to=onnx.TensorProto.FLOAT)

    def _node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        import onnx

        name = f"{self.name} {len(self.nodes)} widened"
        self.nodes.append(onnx.helper.make_node(operator, inputs, [name], **attributes))
        return name

    def _stored(self, values: Tensor) -> str:
        import onnx

        kinds = {
            **{torch.float16: "FLOAT16", torch.bfloat16: "BFLOAT16", torch.float32: "FLOAT", torch.float64: "DOUBLE"},
            torch.int64: "INT64",
        }
        raw = values.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return self._initializer(getattr(onnx.TensorProto, kinds[values.dtype]), values.shape, raw)

    def _stored_integers(self, integers: Tensor, bits: FactorBits) -> str:
        import onnx

        if bits.bits == 8:
            raw = integers.to(torch.int8).numpy().tobytes()
            return self._initializer(onnx.TensorProto.INT8, integers.shape, raw)
        # Two in a byte, the first in its lower half.
        halves = F.pad(integers.to(torch.int8).flatten(), (0, integers.numel() % 2)).view(-1, 2) & 15
        raw = (halves[:, 0] | (halves[:, 1] << 4)).numpy().tobytes()
        return self._initializer(onnx.TensorProto.INT4, integers.shape, raw)

    def _initializer(self, kind: int, shape: Iterable[int], raw: bytes) -> str:
        import onnx

        name = f"{self.name} {len(self.initializers)} narrow"
        self.initializers.append(onnx.helper.make_tensor(name, kind, list(shape), raw, raw=True))
        return name

    def _store_wide(self, values: Tensor, rows: StoredRows) -> None:
        """Store rows in the type that they had, as an initializer of the old name."""
        self._stored(values.to(rows.rows.dtype))
        self.initializers[-1].name = self.name

    def _finish(self, value: str) -> None:
        """Let a value in float32 be what the initializer was."""
        import onnx

        if self.kind != onnx.TensorProto.FLOAT:
            self._node("Cast", value, to=self.kind)
        self._name_last()

    def _name_last(self) -> None:
        self.nodes[-1].output[0] = self.name
