"""Which implementation of each op runs on a device."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch

from quire_kernels.ops.argmax import reference as argmax_reference
from quire_kernels.ops.linear import reference as linear_reference
from quire_kernels.ops.linear.packed import PackedLinear
from quire_kernels.ops.paged_attention import reference as paged_attention_reference
from quire_kernels.ops.rms_norm import reference as rms_norm_reference
from quire_kernels.ops.rope import reference as rope_reference
from quire_kernels.ops.silu_mul import reference as silu_mul_reference
from quire_kernels.ops.write_kv import reference as write_kv_reference
from quire_kernels.progress import progress_counter

P = ParamSpec("P")
R = TypeVar("R")
Op = Callable[..., Any]


@dataclass(frozen=True)
class Backend:
    """One implementation of every op. Signatures are those of the functions in quire_kernels."""

    name: str  # "cpp", "torch" or "triton"
    isa: str  # instruction set of the CPU kernels, "torch" without them
    pack_linear: Callable[[torch.Tensor], PackedLinear]
    linear: Callable[..., torch.Tensor]
    embedding: Callable[[torch.Tensor, PackedLinear], torch.Tensor]
    rms_norm: Callable[..., torch.Tensor]
    add_rms_norm: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    rope: Callable[..., None]
    silu_mul: Callable[..., torch.Tensor]
    write_kv: Callable[..., None]
    paged_attention: Callable[..., torch.Tensor]
    argmax: Callable[[torch.Tensor], torch.Tensor]


def counted(op: Callable[P, R]) -> Callable[P, R]:
    """`op`, moving the progress counter at each call as the C++ kernels do by themselves."""

    @functools.wraps(op)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        progress_counter.bump()
        return op(*args, **kwargs)

    return run


@functools.cache
def torch_backend() -> Backend:
    """The references, on any device."""
    return Backend(
        name="torch",
        isa="torch",
        pack_linear=linear_reference.pack_linear,
        linear=counted(linear_reference.linear),
        embedding=counted(linear_reference.embedding),
        rms_norm=counted(rms_norm_reference.rms_norm),
        add_rms_norm=counted(rms_norm_reference.add_rms_norm),
        rope=counted(rope_reference.rope),
        silu_mul=counted(silu_mul_reference.silu_mul),
        write_kv=counted(write_kv_reference.write_kv),
        paged_attention=counted(paged_attention_reference.paged_attention),
        argmax=counted(argmax_reference.argmax),
    )


@functools.cache
def backend(device: torch.device | str = "cpu") -> Backend:
    """The implementation that serves tensors on `device`."""
    return torch_backend()
