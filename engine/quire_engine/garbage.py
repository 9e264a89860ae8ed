"""How seldom our processes look for garbage."""

import gc


def collect_seldom() -> None:
    """From the start on: what imports make stays, and a step of 1,000 streams makes thousands of
    short-lived objects and no cycles, which by default is several collections. What it saves while
    importing is within the spread of runs (tests/bench/bench_startup.py)."""
    gc.set_threshold(50_000, 20, 50)


def keep_imports() -> None:
    """After them: what is there by now stays, and is not looked at again."""
    gc.freeze()
