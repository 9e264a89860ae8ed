"""A counter in shared memory that moves with every kernel call: a stuck core shows in it."""

import ctypes
from collections.abc import Callable


class ProgressCounter:
    """Bumps an int64 at a given address, or nothing when none is set.

    The C++ kernels follow the address and bump it with an atomic add of their own. `bump` serves
    the torch and Triton paths; it is not atomic and need not be: one thread runs kernels.
    """

    def __init__(self) -> None:
        self._address: int | None = None
        self._cell: ctypes.c_int64 | None = None
        self._followers: list[Callable[[int | None], object]] = []

    def attach(self, address: int | None) -> None:
        """Count at `address` (of an int64 that outlives its use) from now on; None stops it."""
        self._address = address
        self._cell = None if address is None else ctypes.c_int64.from_address(address)
        for follower in self._followers:
            follower(address)

    def follow(self, follower: Callable[[int | None], object]) -> None:
        """Call `follower` with the address now and whenever it changes."""
        self._followers.append(follower)
        follower(self._address)

    def bump(self) -> None:
        """One step."""
        if self._cell is not None:
            self._cell.value += 1


progress_counter = ProgressCounter()
