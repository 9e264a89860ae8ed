"""The core process as the API process holds it: sockets, pulse, birth and end.

Imports little, so that the core can be started before the rest of the API process is imported: its
start-up (torch, weights) is the long one.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import zmq

from quire_engine.config import EngineConfig
from quire_engine.machine import process_age_seconds
from quire_engine.progress import ProgressFile

CORE_COMMAND = (sys.executable, "-m", "quire_engine.core")
EXIT_SECONDS = 5.0  # for a core that was told to shut down; it frees memory and leaves


class CoreProcess:
    """One core process and what ties it to us. Start it from the main thread (PDEATHSIG is the
    thread's).
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        folder: Path,
        requests: "zmq.Socket[bytes]",
        outputs: "zmq.Socket[bytes]",
        progress: ProgressFile,
        spawned_at_age: float,
    ) -> None:
        """`spawned_at_age`: seconds that our own process had lived by then."""
        self.process = process
        self.spawned_at_age = spawned_at_age
        self.requests = requests
        self.outputs = outputs
        self.progress = progress
        self._folder = folder

    @classmethod
    def spawn(cls, config: EngineConfig, command: Sequence[str] = CORE_COMMAND) -> "CoreProcess":
        """Bind the sockets, write the config, start the process. Leaves nothing behind when it
        fails.
        """
        folder = Path(tempfile.mkdtemp(prefix="quire-"))
        context = zmq.Context()
        try:
            requests = _bound(context, zmq.PUSH, folder / "requests")
            outputs = _bound(context, zmq.PULL, folder / "outputs")
            progress = ProgressFile.create(folder / "progress")
            (folder / "config.json").write_bytes(config.to_json())
            age = process_age_seconds()
            process = subprocess.Popen([*command, *_arguments(folder)])
        except BaseException:
            context.destroy(linger=0)
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return cls(process, folder, requests, outputs, progress, age)

    def remove_folder(self) -> None:
        """Once the core has spoken: both sides hold sockets and map by then, and a kill of ours
        leaves nothing behind. (The core connects `requests` before `outputs`, which it speaks on.)
        """
        shutil.rmtree(self._folder, ignore_errors=True)

    async def wait(self) -> int:
        """The exit code, as subprocess gives it (negative: the signal). Polls nothing: a pidfd
        wakes us.
        """
        code = self.process.poll()
        if code is not None:
            return code
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        descriptor = os.pidfd_open(self.process.pid)
        try:
            loop.add_reader(descriptor, ended.set)
            await ended.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        return self.process.wait()

    async def stop(self) -> None:
        """Wait for a core that was told to leave; kill it where it does not."""
        try:
            async with asyncio.timeout(EXIT_SECONDS):
                await self.wait()
        except TimeoutError:
            self.process.kill()
        self.close()

    def close(self) -> None:
        """End the process if it still runs, and take sockets and files away."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.requests.context.destroy(linger=0)
        self.remove_folder()


def describe_exit(code: int) -> str:
    """How a process ended, for a person."""
    if code >= 0:
        return f"exit code {code}"
    hint = " (the kernel's out-of-memory killer sends it)" if -code == signal.SIGKILL else ""
    return f"signal {signal.Signals(-code).name}{hint}"


def _arguments(folder: Path) -> list[str]:
    return [
        *("--config", str(folder / "config.json")),
        *("--requests", f"ipc://{folder}/requests"),
        *("--outputs", f"ipc://{folder}/outputs"),
        *("--progress", str(folder / "progress")),
        *("--parent", str(os.getpid())),
    ]


def _bound(context: "zmq.Context[zmq.Socket[bytes]]", kind: int, path: Path) -> "zmq.Socket[bytes]":
    socket = context.socket(kind)
    socket.set_hwm(0)  # what may wait is bounded by admission, not by dropping or blocking here
    socket.linger = 0
    socket.bind(f"ipc://{path}")
    return socket
