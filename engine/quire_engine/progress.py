"""The core's pulse: a few integers in a memory-mapped file that both processes have open.

The core bumps `counter` with every layer (every tensor while it loads), so that the API process
can tell a long prefill, which moves, from a hang, which does not, without waiting for an answer on
a socket that a hung core would never give.

    offset 0   int64  counter     moves with every layer
    offset 8   int64  pending     requests that the core holds; 1 while it loads
    offset 16  int64  updated_ns  CLOCK_MONOTONIC (one clock for both processes) of the last step's
                                  begin or end

Aligned 8-byte stores are atomic on the processors we build for; there is one writer. No torch.
"""

import ctypes
import mmap
import os
import time
from dataclasses import dataclass
from pathlib import Path

PROGRESS_BYTES = 64


class _Fields(ctypes.Structure):
    _fields_ = (
        ("counter", ctypes.c_int64),
        ("pending", ctypes.c_int64),
        ("updated_ns", ctypes.c_int64),
    )


@dataclass(frozen=True)
class Progress:
    """One look at the pulse."""

    counter: int
    pending: int  # requests held; 1 while loading
    updated_ns: int  # monotonic; 0 before the core's first write


class ProgressFile:
    """The mapped file. The API process `create`s it, then starts the core, which `open`s it."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), PROGRESS_BYTES)
        self._fields = _Fields.from_buffer(self._map)

    @classmethod
    def create(cls, path: Path) -> "ProgressFile":
        """A new, zeroed file at `path` (truncates what is there)."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.ftruncate(descriptor, PROGRESS_BYTES)
        os.close(descriptor)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "ProgressFile":
        """The file that the other process made. OSError when it is not there."""
        return cls(path)

    @property
    def counter_address(self) -> int:
        """Where the counter lies in this process, for kernels that bump it themselves."""
        return ctypes.addressof(self._fields)

    def read(self) -> Progress:
        """The pulse now."""
        fields = self._fields
        return Progress(fields.counter, fields.pending, fields.updated_ns)

    def bump(self) -> None:
        """Something moved. Called by the core only."""
        self._fields.counter += 1

    def mark(self, pending: int) -> None:
        """A step begins or ends with `pending` requests held. Called by the core only."""
        self._fields.pending = pending
        self._fields.updated_ns = time.monotonic_ns()
        self._fields.counter += 1
