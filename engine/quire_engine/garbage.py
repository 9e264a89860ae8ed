"""How seldom our processes look for garbage."""

import gc


def collect_seldom() -> None:
    """From the start on: what imports make stays, and a step of 1,000 streams makes thousands of
    short-lived objects and no cycles, which by default is several collections. What it saves while
    importing is within the spread of runs (tests/bench/bench_startup.py)."""
    gc.set_threshold(50_000, 20, 50)


def collect_briefly() -> None:
    """In a process with an event loop, once it serves: as seldom in the older generations, and the
    youngest in parcels: while 50,000 new objects, as a burst of requests makes them, are looked at,
    nothing else runs (tests/bench/results/api.md has the loop's longest blocks).
    """
    gc.set_threshold(5_000, 200, 50)


def keep_imports() -> None:
    """After them: what is there by now stays, and is not looked at again."""
    gc.freeze()
