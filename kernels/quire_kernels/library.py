"""The compiled variants, loaded by ctypes (which gives the GIL away during each call)."""

import ctypes
import functools
from pathlib import Path

import torch

from quire_kernels.errors import KernelSettingError
from quire_kernels.progress import progress_counter

# Functions of csrc/variant.cpp that take a pointer to their packed arguments, by what they return.
_ACTIONS = (
    *("quire_pack", "quire_pack_gguf", "quire_linear", "quire_rms_norm", "quire_silu_mul"),
    "quire_argmax",
)
_CHECKED = (
    *("quire_pack_int8", "quire_pack_int4", "quire_embedding", "quire_rope", "quire_write_kv"),
    "quire_paged_attention",
)


@functools.cache
def available_isas() -> tuple[str, ...]:
    """Instruction sets with a compiled variant that this processor runs, widest first.

    Raises:
        KernelSettingError: a variant was compiled from other sources.
    """
    from quire_kernels.build import (
        LIBRARY_FOLDER,
        VARIANTS,
        sources_digest,
    )  # late, for `python -m` to run it

    names = []
    for variant in reversed(VARIANTS):
        path = LIBRARY_FOLDER / variant.library
        if path.is_file() and _open_current(path, sources_digest()).quire_supported():
            names.append(variant.name)
    return tuple(names)


def _open_current(path: Path, digest: str) -> ctypes.CDLL:
    """The library at `path`, refused if it was compiled from other sources than these: calls would
    not fit."""
    library = _open(path)
    library.quire_sources.restype = ctypes.c_char_p
    if library.quire_sources() != digest.encode():
        raise KernelSettingError(
            f"{path} must be compiled from the sources beside it, and they have changed since; "
            "run python -m quire_kernels.build"
        )
    return library


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
    for name in (*_ACTIONS, *_CHECKED):
        function = getattr(library, name)
        function.restype = ctypes.c_int64 if name in _CHECKED else None
        function.argtypes = [ctypes.c_char_p]
    library.quire_set_progress.argtypes = [ctypes.c_void_p]
    library.quire_set_progress.restype = library.quire_set_num_threads.restype = None
    library.quire_set_num_threads(torch.get_num_threads())
    progress_counter.follow(library.quire_set_progress)
    return library


@functools.cache
def _open(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))
