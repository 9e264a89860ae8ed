"""The compiled variants, loaded by ctypes (which gives the GIL away during each call)."""

import ctypes
import functools
from pathlib import Path
from typing import TypeAlias

import torch

from quire_kernels.errors import KernelSettingError
from quire_kernels.progress import progress_counter

_Type: TypeAlias = (
    type[ctypes.c_void_p] | type[ctypes.c_int64] | type[ctypes.c_int32] | type[ctypes.c_float]
)
_TYPES: dict[str, _Type] = {
    "p": ctypes.c_void_p,
    "q": ctypes.c_int64,
    "i": ctypes.c_int32,
    "f": ctypes.c_float,
}
# function: result and arguments in these letters, as csrc/variant.cpp declares them; "-" is void
_SIGNATURES = {
    "quire_set_num_threads": "- i",
    "quire_set_progress": "- p",
    "quire_pack": "- piqqp",
    "quire_linear": "- pqqpiqqppq",
    "quire_embedding": "q pqpiqqp",
    "quire_rms_norm": "- pqppfqqpp",
    "quire_rope": "q pqqpqqqqppq",
    "quire_silu_mul": "- pqqp",
    "quire_write_kv": "q pqpqqqppqp",
    "quire_paged_attention": "q pqppqqqqqpppqqqqfp",
    "quire_argmax": "- pqqqp",
}


@functools.cache
def available_isas() -> tuple[str, ...]:
    """Instruction sets with a compiled variant that this processor runs, widest first."""
    from quire_kernels.build import LIBRARY_FOLDER, VARIANTS  # late, for `python -m` to run it

    names = []
    for variant in reversed(VARIANTS):
        path = LIBRARY_FOLDER / variant.library
        if path.is_file() and _open(path).quire_supported():
            names.append(variant.name)
    return tuple(names)


@functools.cache
def load_library(isa: str) -> ctypes.CDLL:
    """The variant for `isa`, its functions declared, on torch's number of threads.

    Raises:
        KernelSettingError: the variant is not compiled or this processor lacks the instructions.
    """
    if isa not in available_isas():
        there = ", ".join(available_isas()) or "none"
        raise KernelSettingError(
            f"the instruction set must be compiled and this processor's ({there}), got {isa!r}; "
            "unset QUIRE_ISA, or run python -m quire_kernels.build where it is missing"
        )
    from quire_kernels.build import LIBRARY_FOLDER

    library = _open(LIBRARY_FOLDER / f"quire_{isa}.so")
    for name, signature in _SIGNATURES.items():
        result, arguments = signature.split()
        function = getattr(library, name)
        function.restype = _TYPES.get(result)
        function.argtypes = [_TYPES[letter] for letter in arguments]
    library.quire_set_num_threads(torch.get_num_threads())
    progress_counter.follow(library.quire_set_progress)
    return library


@functools.cache
def _open(path: Path) -> ctypes.CDLL:
    _share_openmp()
    return ctypes.CDLL(str(path))


@functools.cache
def _share_openmp() -> None:
    """Make the OpenMP runtime that torch has loaded the one that our libraries find.

    Two runtimes in a process are two pools of threads that fight for the cores. torch's wheels
    carry a libgomp of their own, under names that differ; a second handle makes it global.
    """
    with Path("/proc/self/maps").open() as maps:
        loaded = {line.split()[-1] for line in maps if "libgomp" in line}
    ctypes.CDLL(min(loaded, default="libgomp.so.1"), mode=ctypes.RTLD_GLOBAL)
