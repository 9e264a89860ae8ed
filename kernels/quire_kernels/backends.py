"""Which implementation of each op runs on a device."""

import dataclasses
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch

from quire_kernels.errors import KernelSettingError
from quire_kernels.library import available_isas, load_library
from quire_kernels.ops.argmax import reference as argmax_reference
from quire_kernels.ops.argmax.cpp import CppArgmax
from quire_kernels.ops.linear import reference as linear_reference
from quire_kernels.ops.linear.cpp import CppLinear
from quire_kernels.ops.linear.packed import GgufRows, PackedLinear
from quire_kernels.ops.paged_attention import reference as paged_attention_reference
from quire_kernels.ops.paged_attention.cpp import CppPagedAttention
from quire_kernels.ops.rms_norm import reference as rms_norm_reference
from quire_kernels.ops.rms_norm.cpp import CppRmsNorm
from quire_kernels.ops.rope import reference as rope_reference
from quire_kernels.ops.rope.cpp import CppRope
from quire_kernels.ops.silu_mul import reference as silu_mul_reference
from quire_kernels.ops.silu_mul.cpp import CppSiluMul
from quire_kernels.ops.write_kv import reference as write_kv_reference
from quire_kernels.ops.write_kv.cpp import CppWriteKv
from quire_kernels.progress import progress_counter
from quire_kernels.recording import Recording
from quire_kernels.settings import KernelSettings, settings

P = ParamSpec("P")
R = TypeVar("R")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """One implementation of every op. Signatures are those of the functions in quire_kernels."""

    name: str  # "cpp", "torch" or "triton"
    isa: str  # instruction set of the CPU kernels, "torch" without them
    pack_linear: Callable[..., PackedLinear]
    pack_gguf: Callable[[GgufRows], PackedLinear]
    linear: Callable[..., torch.Tensor]
    embedding: Callable[..., torch.Tensor]
    rms_norm: Callable[..., torch.Tensor]
    add_rms_norm: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    rope: Callable[..., None]
    silu_mul: Callable[..., torch.Tensor]
    write_kv: Callable[..., None]
    paged_attention: Callable[..., torch.Tensor]
    argmax: Callable[[torch.Tensor], torch.Tensor]
    set_num_threads: Callable[[int], None]
    record: Callable[[Callable[[], Any]], tuple[Any, Recording | None]]


def counted(op: Callable[P, R]) -> Callable[P, R]:
    """`op`, moving the progress counter at each call as the C++ kernels do by themselves."""

    @functools.wraps(op)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        progress_counter.bump()
        return op(*args, **kwargs)

    return run


def not_recorded(function: Callable[[], R]) -> tuple[R, None]:
    """What `function` returns: torch and Triton have no calls that could be made again from C."""
    return function(), None


@functools.cache
def torch_backend() -> Backend:
    """The references, on any device."""
    return Backend(
        name="torch",
        isa="torch",
        pack_linear=linear_reference.pack_linear,
        pack_gguf=linear_reference.pack_gguf,
        linear=counted(linear_reference.linear),
        embedding=counted(linear_reference.embedding),
        rms_norm=counted(rms_norm_reference.rms_norm),
        add_rms_norm=counted(rms_norm_reference.add_rms_norm),
        rope=counted(rope_reference.rope),
        silu_mul=counted(silu_mul_reference.silu_mul),
        write_kv=counted(write_kv_reference.write_kv),
        paged_attention=counted(paged_attention_reference.paged_attention),
        argmax=counted(argmax_reference.argmax),
        set_num_threads=torch.set_num_threads,
        record=not_recorded,
    )


@functools.cache
def cpp_backend(isa: str) -> Backend:
    """The compiled variant for one instruction set.

    Raises:
        KernelSettingError: it is not compiled, or this processor lacks the instructions.
    """
    library = load_library(isa)
    linear, norm = CppLinear(library), CppRmsNorm(library)
    return Backend(
        name="cpp",
        isa=isa,
        pack_linear=linear.pack,
        pack_gguf=linear.pack_gguf,
        linear=linear.linear,
        embedding=linear.embedding,
        rms_norm=norm.rms_norm,
        add_rms_norm=norm.add_rms_norm,
        rope=CppRope(library).rope,
        silu_mul=CppSiluMul(library).silu_mul,
        write_kv=CppWriteKv(library).write_kv,
        paged_attention=CppPagedAttention(library).paged_attention,
        argmax=CppArgmax(library).argmax,
        set_num_threads=library.set_num_threads,
        record=library.record,
    )


def choose_cpu_backend(wanted: KernelSettings, available: tuple[str, ...]) -> Backend:
    """The CPU's backend under `wanted`, `available` being the variants that run here, best first.

    Raises:
        KernelSettingError: C++ is asked for and not there.
    """
    if wanted.implementation == "torch":
        return torch_backend()
    if wanted.isa is not None:
        return cpp_backend(wanted.isa)
    if available:
        return cpp_backend(available[0])
    if wanted.implementation == "cpp":
        raise KernelSettingError(
            "QUIRE_KERNELS=cpp needs a compiled variant that this processor runs, there is none; "
            "run python -m quire_kernels.build, or unset QUIRE_KERNELS"
        )
    logger.warning(
        "no compiled kernels for this processor: torch runs instead, at about a third of the speed "
        "and with results that may depend on the batch; python -m quire_kernels.build compiles them"
    )
    return torch_backend()


@functools.cache
def triton_backend() -> Backend:
    """Triton for the attention pair and torch, with cuBLAS beneath, for the rest."""
    # late: importing triton costs half a second that a CPU has no use for
    from quire_kernels.ops.paged_attention import triton as paged_attention_triton
    from quire_kernels.ops.write_kv import triton as write_kv_triton

    return dataclasses.replace(
        torch_backend(),
        name="triton",
        write_kv=counted(write_kv_triton.write_kv),
        paged_attention=counted(paged_attention_triton.paged_attention),
    )


@functools.cache
def backend(device: torch.device | str = "cpu") -> Backend:
    """The implementation that serves tensors on `device`: C++ or torch on a CPU, else Triton."""
    if torch.device(device).type == "cpu":
        return choose_cpu_backend(settings(), available_isas())
    return triton_backend()
