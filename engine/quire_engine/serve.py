"""`quire-engine serve`: the core first, for its start-up is the long one, then everything else."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING

from quire_engine.api.core_process import CORE_COMMAND, CoreProcess
from quire_engine.config import EngineConfig
from quire_engine.errors import ConfigError
from quire_engine.garbage import collect_briefly, keep_imports
from quire_engine.settings import ServerSettings

if TYPE_CHECKING:
    from quire_engine.api.client import CoreEnd

BACKLOG = 2048  # connections that the kernel may hold for us in a burst; uvicorn's own default


def serve(
    settings: ServerSettings, config: EngineConfig, core_command: Sequence[str] = CORE_COMMAND
) -> "CoreEnd | None":
    """Serve until SIGTERM's drain is over (None), or until something ends it (how). Main thread
    only.
    """
    _leave_on_early_signals()
    set_up_logging()
    listener = listen(settings.host, settings.port)
    core = CoreProcess.spawn(config, core_command)
    try:
        import uvloop

        from quire_engine.api.server import Server

        keep_imports()
        collect_briefly()

        async def run() -> "CoreEnd | None":
            return await Server(settings, core, listener).run()

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(run())
    finally:
        core.close()
        listener.close()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; ConfigError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"host and port must be a free address of this machine, got {host}:{port} "
            f"({error.strerror}); choose another --port, or stop what listens there"
        ) from error


def set_up_logging() -> None:
    """One line an event on stderr: `LEVEL logger message key=value`."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("uvicorn.error").setLevel(
        logging.WARNING
    )  # it tells of start and stop, as we do


class _OneLine(logging.Formatter):
    """Tracebacks too."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\n", " | ")


def _leave_on_early_signals() -> None:
    """Until the event loop drains: as PID 1 in a container a process without handlers ignores
    SIGTERM.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        os._exit(0)  # nothing was accepted yet; the core dies with us (PDEATHSIG)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
