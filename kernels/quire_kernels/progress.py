"""A counter in shared memory that moves with every kernel call: what /health reads to tell slow from stuck."""

import ctypes


class ProgressCounter:
    """Bumps an int64 at a given address, or nothing when none is set.

    The C++ kernels bump the same address with an atomic add of their own. This one serves the torch and
    Triton paths; it is not atomic, and need not be: one thread runs the kernels, others only read.
    """

    def __init__(self) -> None:
        self._cell: ctypes.c_int64 | None = None

    def attach(self, address: int | None) -> None:
        """Count at `address` (of an int64 that outlives its use here) from now on; None stops counting."""
        self._cell = None if address is None else ctypes.c_int64.from_address(address)

    def bump(self) -> None:
        if self._cell is not None:
            self._cell.value += 1


progress_counter = ProgressCounter()
