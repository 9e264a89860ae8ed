"""The compiled variants, loaded by ctypes (which gives the GIL away during each call)."""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from quire_kernels.errors import KernelSettingError
from quire_kernels.progress import progress_counter
from quire_kernels.recording import Call, Recording, TorchWork

R = TypeVar("R")

# Functions of csrc/variant.cpp that take a pointer to their packed arguments, by what they return
# when all is well; None: nothing.
_GOOD = {
    **dict.fromkeys(("quire_pack", "quire_pack_gguf", "quire_linear", "quire_rms_norm")),
    **dict.fromkeys(("quire_silu_mul", "quire_argmax")),
    **dict.fromkeys(("quire_pack_int8", "quire_pack_int4", "quire_embedding"), -1),
    **dict.fromkeys(("quire_rope", "quire_write_kv"), -1),
    "quire_paged_attention": 0,
}


class Library:
    """One variant's functions."""

    def __init__(self, compiled: ctypes.CDLL) -> None:
        self._compiled = compiled
        self._recorded: list[Call] | None = None  # while `record` runs
        compiled.quire_replay.argtypes = [ctypes.c_void_p, ctypes.c_int64]
        compiled.quire_replay.restype = ctypes.c_int64
        compiled.quire_set_progress.argtypes = [ctypes.c_void_p]
        compiled.quire_set_progress.restype = compiled.quire_set_num_threads.restype = None
        self.set_num_threads = compiled.quire_set_num_threads
        self.set_progress = compiled.quire_set_progress

    def function(self, name: str) -> Callable[[bytes], int]:
        """The function that takes a pointer to its packed arguments. Calls can be recorded."""
        good, function = _GOOD[name], self._compiled[name]  # one of its own, declared here only
        function.restype = None if good is None else ctypes.c_int64
        function.argtypes = [ctypes.c_char_p]
        address = ctypes.cast(function, ctypes.c_void_p).value
        assert address is not None, "a function that was found has an address"

        def call(arguments: bytes) -> int:
            if self._recorded is not None:
                self._recorded.append(Call(address, arguments, good))
            result: int = function(arguments)
            return result

        return call

    def record(self, function: Callable[[], R]) -> tuple[R, Recording | None]:
        """See quire_kernels.record."""
        assert self._recorded is None, "a recording holds no recording"
        calls: list[Call] = []
        self._recorded = calls
        try:
            with TorchWork() as torch_work:
                result = function()
        finally:
            self._recorded = None
        if torch_work.any:
            return result, None
        return result, Recording(self._compiled.quire_replay, calls)


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
def load_library(isa: str) -> Library:
    """The variant for `isa`, on torch's number of threads.

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

    library = Library(_open(LIBRARY_FOLDER / f"quire_{isa}.so"))
    library.set_num_threads(torch.get_num_threads())
    progress_counter.follow(library.set_progress)
    return library


@functools.cache
def _open(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))
