"""How seldom our processes look for garbage."""

import gc


def collect_seldom() -> None:
    """Before the imports: what they make stays, and to look through it again and again, as Python
    does by default, is a tenth of their time (tests/bench/bench_startup.py). A step of 1,000
    streams makes thousands of short-lived objects and no cycles besides: several collections."""
    gc.set_threshold(50_000, 20, 50)


def keep_imports() -> None:
    """After them: what is there by now stays, and is not looked at again."""
    gc.freeze()
