"""A whole server on loopback, real core and all, around a model that nobody would talk to."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from quire_cluster.tiny_models import TinyModel, write_tiny_model
from quire_cluster.tiny_tokenizer import VOCAB_SIZE, write_tiny_tokenizer

READY_SECONDS = 60  # 3 on an idle machine; imports are what takes long on a busy one
TINY = TinyModel(hidden_size=64, intermediate_size=128, vocab_size=VOCAB_SIZE)


class TinyServer:
    """`quire-engine serve` as a process; `flags` as its command line takes them."""

    def __init__(self, folder: Path, model: TinyModel, flags: tuple[str, ...]) -> None:
        write_tiny_tokenizer(write_tiny_model(folder / "model", model))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "stderr"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "quire_engine", "serve", str(folder / "model"),
                 "--host", "127.0.0.1", "--port", str(self.port), "--served-model-name", "tiny",
                 "--device", "cpu", *flags],
                stderr=log,
                env={**os.environ, "TERMINATION_LOG": str(folder / "end")},
            )  # fmt: skip

    @property
    def core_pid(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int(children.read_text().split()[0])

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=30)

    def metric(self, name: str) -> float:
        """The value of the first series of that name."""
        found = re.search(rf"^{re.escape(name)}(?:{{.*}})? (.*)$", self.get("/metrics").text, re.M)
        if found is None:
            raise KeyError(name)
        return float(found[1])

    def eventually(self, holds: Callable[[], bool], seconds: float = 20) -> None:
        """Wait for something that another process is about to do."""
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                raise AssertionError(f"did not come to hold; the log: {self.log.read_text()}")
            time.sleep(0.01)

    def is_ready(self) -> bool:
        try:
            return self.get("/ready").status_code == 200
        except httpx.TransportError:
            if self.process.poll() is not None:
                raise AssertionError(self.log.read_text()) from None
            return False

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.send_signal(signal.SIGINT)  # what still runs is aborted
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def tiny_server(folder: Path, *flags: str, model: TinyModel = TINY) -> Iterator[TinyServer]:
    """A server that is ready, ended with the block."""
    server = TinyServer(folder, model, flags)
    try:
        server.eventually(server.is_ready, READY_SECONDS)
        yield server
    finally:
        server.close()
