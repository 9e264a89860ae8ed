"""What LoRA adapters add to a decoder's products, row by row of a batch.

Each adapter's rows lie side by side (the scheduler sees to it), so that an adapter costs two small
products a layer and part, however many requests name it, and a batch without adapters nothing. The
products are those of `kernels.linear`: a row's bits do not depend on the rows beside it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

import quire_kernels as kernels


@dataclass(frozen=True, slots=True)
class LoraPart:
    """One linear layer's B, within the product that the layer is a part of."""

    columns: slice  # of the product
    ranks: slice  # of what the stacked A gives
    up: kernels.PackedLinear  # B [columns, r]


@dataclass(frozen=True, slots=True)
class LoraLinear:
    """What is added to one product: scale * B (A x) for each of its parts."""

    down: kernels.PackedLinear  # the parts' A, one under the other: [parts * r, inputs]
    parts: tuple[LoraPart, ...]
    scale: float

    @property
    def nbytes(self) -> int:
        return self.down.nbytes + sum(part.up.nbytes for part in self.parts)


@dataclass(frozen=True, slots=True)
class LayerAdapter:
    """One layer's; None where the adapter leaves a product as it is."""

    qkv: LoraLinear | None
    output: LoraLinear | None
    gate_up: LoraLinear | None
    down: LoraLinear | None


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter, packed."""

    layers: tuple[LayerAdapter, ...]
    content_hash: bytes  # of its files: what its keys and values in the prefix cache depend on

    @property
    def nbytes(self) -> int:
        linears = (
            linear
            for layer in self.layers
            for linear in (layer.qkv, layer.output, layer.gate_up, layer.down)
        )
        return sum(linear.nbytes for linear in linears if linear is not None)


@dataclass(frozen=True, slots=True)
class AdapterRows:
    """Where an adapter's tokens lie in a step."""

    adapter: Adapter
    tokens: slice  # of the step's tokens
    sampled: slice  # of the rows whose logits are wanted


def add_lora(out: Tensor, x: Tensor, additions: Iterable[tuple[LoraLinear | None, slice]]) -> None:
    """Add to out [T, N], the product of x [T, K], what each adapter gives for its rows."""
    for linear, rows in additions:
        if linear is None or rows.start == rows.stop:
            continue
        inner = kernels.linear(x[rows], linear.down).mul_(linear.scale)
        for part in linear.parts:
            out[rows, part.columns].add_(kernels.linear(inner[:, part.ranks], part.up))
