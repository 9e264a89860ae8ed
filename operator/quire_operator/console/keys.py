"""The key q, while a live table stands on the terminal."""

from __future__ import annotations

import asyncio
import os
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quit_key() -> Iterator[asyncio.Event]:
    """An event that q sets. Where no terminal is to be read from it is never set: Ctrl-C remains.

    The terminal is put back as it was, whatever happens in between.
    """
    asked = asyncio.Event()
    if not sys.stdin.isatty():
        yield asked
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    loop = asyncio.get_running_loop()

    def pressed() -> None:
        typed = os.read(terminal, 64)
        if not typed:  # the terminal is gone
            loop.remove_reader(terminal)
        if not typed or b"q" in typed.lower():
            asked.set()

    try:
        tty.setcbreak(terminal)  # Ctrl-C stays a signal
        loop.add_reader(terminal, pressed)
        yield asked
    finally:
        loop.remove_reader(terminal)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
