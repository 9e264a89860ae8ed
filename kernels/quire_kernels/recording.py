"""Kernel calls that were made once, to be made again by one call: what CUDA graphs are on a GPU.

Checks, views and packed arguments cost more than many a kernel, and a step makes hundreds of calls
whose arguments are the same as long as they stand in the same memory.
"""

import ctypes
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch.overrides import TorchFunctionMode

Replay: TypeAlias = Callable[[int, int], int]  # quire_replay

# RecordedCall in csrc/variant.cpp
_CALL = struct.Struct("4q").pack


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a compiled function."""

    function: int  # its address
    arguments: bytes
    good: int | None  # what it returns when all is well; None: it returns nothing


class Recording:
    """Calls in their order, with the addresses that they had. The memory is the caller's, who keeps
    it for as long as this is replayed, and puts the next step's numbers where the last one's were.
    """

    def __init__(self, replay: Replay, calls: Sequence[Call]) -> None:
        self._replay = replay
        self._num_calls = len(calls)
        self._arguments = _kept(b"".join(call.arguments for call in calls))
        address, entries = ctypes.addressof(self._arguments), []
        for call in calls:
            entries.append(_CALL(call.function, address, call.good is not None, call.good or 0))
            address += len(call.arguments)
        self._calls = _kept(b"".join(entries))

    def replay(self) -> bool:
        """Make all calls again. False: one refused what it found in memory (an id that is no row,
        a slot that is not there), and those after it were not made."""
        return self._replay(ctypes.addressof(self._calls), self._num_calls) < 0


def _kept(data: bytes) -> ctypes.Array[ctypes.c_int64]:
    """A copy at an address that stays, aligned to 8 bytes."""
    return (ctypes.c_int64 * (len(data) // 8)).from_buffer_copy(data)


class TorchWork(TorchFunctionMode):
    """Whether torch computed or allocated anything meanwhile: a replay would leave that out.

    A mode below this one (TorchDispatchMode) sees more, and imports tens of megabytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.any = False

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        if _writes(func.__name__, kwargs or {}) or not _lies_in(result, args[:1]):
            self.any = True
        return result


def _writes(name: str, kwargs: dict[str, object]) -> bool:
    """Whether a function of torch's writes to its arguments, which is in its name."""
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name == "__setitem__" or name.startswith("__i") or "out" in kwargs


def _lies_in(result: object, sources: tuple[object, ...]) -> bool:
    """Whether all tensors of `result`, if there are any, are memory of the first argument."""
    made = {_memory(each) for each in (result if isinstance(result, list | tuple) else (result,))}
    return made - {None} <= {_memory(source) for source in sources}


def _memory(value: object) -> int | None:
    return value.untyped_storage().data_ptr() if isinstance(value, torch.Tensor) else None
