"""The core process: requests in over one socket, steps, outputs out over the other.

    python -m quire_engine.core --config CONFIG.json --requests ipc://... --outputs ipc://...
                                --progress PATH --parent PID

The API process starts it and ends it: see ../README.md.
"""

import argparse
import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import zmq

from quire_engine.config import EngineConfig
from quire_engine.errors import EngineError, ExitCode
from quire_engine.garbage import collect_seldom, keep_imports
from quire_engine.machine import process_age_seconds
from quire_engine.messages import (
    AbortRequests,
    AddRequest,
    CoreFailed,
    CoreReady,
    FromCore,
    ResetPrefixCache,
    Shutdown,
    ToCore,
)
from quire_engine.progress import ProgressFile

if TYPE_CHECKING:
    from quire_engine.engine import Engine

logger = logging.getLogger(__name__)

PARENT_CHECK_MS = 1000  # how late an idle core notices that its parent is gone
LINGER_MS = 2000  # for the last message to leave
PR_SET_PDEATHSIG = 1


class Channel:
    """The two sockets, in messages."""

    def __init__(self, requests: str, outputs: str) -> None:
        self._context = zmq.Context()
        self._requests = self._connect(zmq.PULL, requests)
        self._outputs = self._connect(zmq.PUSH, outputs)
        self._decoder: msgspec.msgpack.Decoder[ToCore] = msgspec.msgpack.Decoder(ToCore)
        self._encoder = msgspec.msgpack.Encoder()

    def receive(self, timeout_ms: int) -> list[ToCore]:
        """All messages that are there, waiting up to `timeout_ms` for the first."""
        messages: list[ToCore] = []
        while self._requests.poll(0 if messages else timeout_ms):
            messages.append(self._decoder.decode(self._requests.recv()))
        return messages

    def send(self, message: FromCore) -> None:
        """Queue `message`; never blocks on a slow reader."""
        self._outputs.send(self._encoder.encode(message))

    def close(self) -> None:
        """Give the last messages LINGER_MS to leave."""
        self._context.destroy(linger=LINGER_MS)

    def _connect(self, kind: int, address: str) -> "zmq.Socket[bytes]":
        socket = self._context.socket(kind)
        socket.set_hwm(0)
        socket.connect(address)
        return socket


class Core:
    """The loop around an engine."""

    def __init__(
        self, engine: "Engine", channel: Channel, progress: ProgressFile, parent: int
    ) -> None:
        self._engine = engine
        self._channel = channel
        self._progress = progress
        self._parent = parent

    def serve(self) -> None:
        """Receive and step until Shutdown comes or the parent goes."""
        engine = self._engine
        while os.getppid() == self._parent:
            was_busy = engine.num_pending > 0
            if not self._take(self._channel.receive(0 if was_busy else PARENT_CHECK_MS)):
                return
            is_busy = engine.num_pending > 0
            if is_busy:
                self._progress.mark(engine.num_pending)
                self._channel.send(engine.step())
            if (is_busy or was_busy) and not engine.num_pending:
                self._progress.mark(0)
                self._channel.send(engine.idle_report())

    def _take(self, messages: list[ToCore]) -> bool:
        """Hand `messages` to the engine; False when one of them is the end."""
        for message in messages:
            match message:
                case AddRequest():
                    self._engine.add_request(message)
                case AbortRequests():
                    self._engine.abort(message.request_ids)
                case ResetPrefixCache():
                    self._engine.reset_prefix_cache()
                case Shutdown():
                    return False
        return True


def run_core(config_path: Path, channel: Channel, progress: ProgressFile, parent: int) -> ExitCode:
    """Start, report ready, serve. What ends it early is reported as CoreFailed."""
    try:
        collect_seldom()
        with _counting(progress):
            engine, ready = _start(EngineConfig.read(config_path), progress)
            channel.send(ready)
            logger.info("ready kernels=%s blocks=%d startup_seconds=%s",
                        ready.kernels, ready.num_blocks, ready.startup_seconds)  # fmt: skip
            Core(engine, channel, progress, parent).serve()
        return ExitCode.OK
    except EngineError as error:
        return _fail(channel, CoreFailed(exit_code=error.exit_code, reason=error.reason,
                                         message=str(error)))  # fmt: skip
    except Exception as error:
        logger.exception("the core died")
        return _fail(channel, CoreFailed(
            exit_code=ExitCode.INTERNAL, reason="Internal",
            message=f"the core died of {type(error).__name__}: {error}; its log has the traceback",
        ))  # fmt: skip


@contextmanager
def _counting(progress: ProgressFile) -> Iterator[None]:
    """The kernels move the counter as long as its file is mapped. Their import, and torch's with
    it, takes seconds, in which we are tied to our parent already and can tell it what fails."""
    import quire_kernels as kernels

    kernels.set_progress_counter(progress.counter_address)
    try:
        yield
    finally:
        kernels.set_progress_counter(None)


def _start(config: EngineConfig, progress: ProgressFile) -> "tuple[Engine, CoreReady]":
    from quire_engine.start import Stopwatch, start_engine

    keep_imports()
    stopwatch = Stopwatch(_since=time.monotonic() - process_age_seconds())
    stopwatch.lap("imports")
    progress.mark(1)
    started = start_engine(config, progress.bump, stopwatch)
    progress.mark(0)
    return started


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m quire_engine.core", description=__doc__)
    for name in ("config", "requests", "outputs", "progress"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--parent", required=True, type=int)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    if not _tie_to(options.parent):
        return ExitCode.OK
    channel = Channel(options.requests, options.outputs)
    try:
        progress = ProgressFile.open(Path(options.progress))
        return run_core(Path(options.config), channel, progress, options.parent)
    finally:
        channel.close()


def _tie_to(parent: int) -> bool:
    """Leave signals to the parent, and die when it dies (beyond Linux the loop's check does).

    False when it is gone already: nobody signals a death that came before.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent


def _fail(channel: Channel, failure: CoreFailed) -> ExitCode:
    logger.error("%s: %s", failure.reason, failure.message)
    channel.send(failure)
    return ExitCode(failure.exit_code)


if __name__ == "__main__":
    sys.exit(main())
