"""Attention, cache and linear kernels: a torch reference, C++ for CPUs, Triton for GPUs.

Activations are float32 on a CPU and the model's dtype on a GPU. T counts tokens, H hidden features,
Hq and Hkv heads, D head features, B sequences. Tensors are contiguous unless said otherwise.
"""

from collections.abc import Callable
from typing import TypeVar

import torch

from quire_kernels.backends import Backend, backend
from quire_kernels.errors import (
    KernelError,
    KernelInputError,
    KernelSettingError,
)
from quire_kernels.ops.linear.packed import (
    GgufRows,
    GgufType,
    PackedLinear,
    Quantization,
    WeightRows,
)
from quire_kernels.progress import progress_counter
from quire_kernels.recording import Recording

__all__ = [
    "Backend",
    "GgufRows",
    "GgufType",
    "KernelError",
    "KernelInputError",
    "KernelSettingError",
    "PackedLinear",
    "Quantization",
    "Recording",
    "WeightRows",
    "add_rms_norm",
    "argmax",
    "backend",
    "embedding",
    "isa",
    "linear",
    "pack_gguf",
    "pack_linear",
    "paged_attention",
    "record",
    "rms_norm",
    "rope",
    "set_num_threads",
    "set_progress_counter",
    "silu_mul",
    "write_kv",
]

R = TypeVar("R")


def _serving(tensor: torch.Tensor) -> Backend:
    # is_cpu costs a tenth of device.type, and a step makes hundreds of calls
    return backend("cpu") if tensor.is_cpu else backend(tensor.device.type)


def pack_linear(
    weight: torch.Tensor | WeightRows, quantization: Quantization | None = None
) -> PackedLinear:
    """Pack a weight [N, K] for `linear` and `embedding`. One that is read by rows is never whole
    beside what it becomes.

    On a CPU bf16 and fp16 keep their bits; fp32 becomes bf16 where that loses nothing, else stays.
    With "int8" each weight becomes 8 bits, and each 64 of a row share a scale (ops/linear/int8.py);
    with "int4" 4 bits, and each 32 share a scale and a minimum (int4.py). A weight that is not
    finite is a KernelInputError then.
    """
    return backend(weight.device.type).pack_linear(weight, quantization)


def pack_gguf(weight: GgufRows) -> PackedLinear:
    """Pack a GGUF weight [N, K] for a CPU's `linear` and `embedding`, its blocks as they are: what
    it stands for is in ops/linear/gguf.py."""
    return backend("cpu").pack_gguf(weight)


def linear(
    x: torch.Tensor,
    weight: PackedLinear,
    bias: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """x [T, K] times the weight [N, K] transposed, plus bias [N], as [T, N]."""
    return _serving(x).linear(x, weight, bias, out)


def embedding(
    ids: torch.Tensor, weight: PackedLinear, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Rows `ids` [T] int64 of a packed weight [N, K], as [T, K]: tied embeddings need no copy."""
    return _serving(ids).embedding(ids, weight, out)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor | None = None
) -> torch.Tensor:
    """x [T, H] / sqrt(mean(x²) + eps) * weight [H], or [T, heads, D] and weight [D] for each head.

    The token stride of x and out is free; out may be x itself.
    """
    return _serving(x).rms_norm(x, weight, eps, out)


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    in_place: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rms_norm(x + residual), x + residual), all [T, H]; in_place: written over x and residual."""
    return _serving(x).add_rms_norm(x, residual, weight, eps, in_place=in_place)


def rope(
    query: torch.Tensor, key: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor
) -> None:
    """Rotate query [T, Hq, D] and key [T, Hkv, D] in place, halves paired as in GPT-NeoX.

    positions [T] int64 choose rows of cos_sin [P, D] float32: cosines in [:, :D/2], sines in
    [:, D/2:]. The token stride of query and key is free (views into one fused QKV buffer).
    """
    _serving(query).rope(query, key, positions, cos_sin)


def silu_mul(gate_up: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """silu(gate) * up as [T, I] for gate_up [T, 2*I] = gate | up."""
    return _serving(gate_up).silu_mul(gate_up, out)


def write_kv(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """Store key and value [T, Hkv, D] in caches [num_blocks, block_size, Hkv, D].

    slot_mapping [T] int64 holds block_id * block_size + offset; -1 skips its row. Slots are
    distinct. The token stride of key and value is free.
    """
    _serving(key).write_kv(key, value, key_cache, value_cache, slot_mapping)


def paged_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens: torch.Tensor,
    block_tables: torch.Tensor,
    scale: float,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of queries [T, Hq, D] (free token stride) over a paged cache, as [T, Hq, D].

    Sequence b owns the queries query_start_loc[b]:query_start_loc[b+1] (int32 [B+1]); the last of
    them sits at position seq_lens[b]-1 (int32 [B]; these tokens are in the cache already). Its keys
    lie in the blocks block_tables[b] (int32 [B, max_blocks]) of the caches
    [num_blocks, block_size, Hkv, D]. Hq is a multiple of Hkv. With C++ kernels a row's result is
    bitwise the same in any batch and any chunking.
    """
    return _serving(query).paged_attention(
        query, key_cache, value_cache, query_start_loc, seq_lens, block_tables, scale, out
    )


def argmax(x: torch.Tensor) -> torch.Tensor:
    """Index [T] int64 of each row's largest value of x [T, N], the lowest of equals; -1 where a
    value is NaN or the largest one infinite."""
    return _serving(x).argmax(x)


def record(function: Callable[[], R]) -> tuple[R, Recording | None]:
    """What `function` returns, and its kernel calls on the CPU, which `replay()` makes again.

    A replay computes from what then stands in the memory that the calls were given, which the
    caller keeps. None instead of calls: no C++ kernels run here, or torch computed or allocated
    something in `function`, which a replay would leave out.
    """
    return backend("cpu").record(function)


def isa() -> str:
    """What runs on this CPU: "avx2", "avx512", or "torch" where no compiled variant does."""
    return backend("cpu").isa


def set_num_threads(num_threads: int) -> None:
    """Threads that a kernel call may use on the CPU, the caller's included.

    With C++ kernels torch's own ops keep to one thread from then on: their OpenMP pool spins for
    milliseconds after each op, on the very cores that the kernels' pool needs next.
    """
    if num_threads < 1:
        raise KernelInputError(f"num_threads must be >= 1, got {num_threads}")
    serving = backend("cpu")
    serving.set_num_threads(num_threads)
    torch.set_num_threads(1 if serving.name == "cpp" else num_threads)


def set_progress_counter(address: int | None) -> None:
    """Bump the int64 at `address` at every kernel call from now on; None stops that.

    The memory stays the caller's and must outlive its use here.
    """
    progress_counter.attach(address)
