"""tests/engine/api/serve_fake.py, with an eye on its event loop.

    serve_watched.py SETTINGS_JSON CONFIG_JSON BLOCKS_FILE

A callback asks to run after each TICK_SECONDS. How much later it does is how long the loop was kept
from everything else; how much of that its thread was on a processor tells our own work from a busy
machine. What is over TOLD_SECONDS is written down: when it began (CLOCK_MONOTONIC, which processes
share), how long, how much of it on a processor. The ticks cost the process 2 to 3 % of a processor.
Garbage is collected as `quire-engine serve` has it collected.
"""

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from quire_engine.api import server
from quire_engine.config import EngineConfig
from quire_engine.garbage import collect_seldom
from quire_engine.serve import serve
from quire_engine.settings import ServerSettings

FAKE_CORE = Path(__file__).parent.parent / "engine" / "api" / "fake_core.py"
TICK_SECONDS = 0.001
TOLD_SECONDS = 0.002


class Watch:
    """Ticks, as long as the loop runs."""

    def __init__(self, tell: Callable[[str], object]) -> None:
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._asked = self._busy = 0.0
        self._ask()

    def _ask(self) -> None:
        self._asked, self._busy = time.monotonic(), time.thread_time()
        self._loop.call_later(TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        late = time.monotonic() - self._asked - TICK_SECONDS
        if late > TOLD_SECONDS:
            busy = time.thread_time() - self._busy
            self._tell(f"{self._asked:.6f} {late:.6f} {busy:.6f}\n")
        self._ask()


def main(settings: str, config: str, blocks_file: str) -> None:
    """Serve until told to end."""
    collect_seldom()

    class WatchedServer(server.Server):
        async def run(self) -> "server.CoreEnd | None":
            with Path(blocks_file).open("w", buffering=1 << 20) as file:
                Watch(file.write)
                return await super().run()

    server.Server = WatchedServer  # type: ignore[misc]
    serve(
        msgspec.json.decode(settings, type=ServerSettings),
        msgspec.json.decode(config, type=EngineConfig),
        core_command=(sys.executable, str(FAKE_CORE)),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
