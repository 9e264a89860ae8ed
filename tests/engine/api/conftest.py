"""A small real tokenizer, and real servers around a fake core."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec
import pytest

from quire_cluster.tiny_tokenizer import write_tiny_tokenizer
from quire_engine.config import EngineConfig
from quire_engine.settings import ServerSettings

HERE = Path(__file__).parent
MODEL_NAME = "fake"


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder without weights."""
    return write_tiny_tokenizer(tmp_path_factory.mktemp("model"))


@dataclass
class RunningServer:
    """A server process on loopback."""

    process: "subprocess.Popen[bytes]"
    url: str
    core_log: Path
    stderr: Path
    termination_log: Path
    client: httpx.Client

    def get(self, path: str) -> httpx.Response:
        return self.client.get(self.url + path)

    def post(self, path: str, body: object, **headers: str) -> httpx.Response:
        return self.client.post(self.url + path, json=body, headers=headers)

    def metric(self, name: str, **labels: str) -> float:
        """The value of one series."""
        for line in self.get("/metrics").text.splitlines():
            series, _, value = line.rpartition(" ")
            if series.partition("{")[0] == name and all(
                f'{key}="{label}"' in series for key, label in labels.items()
            ):
                return float(value)
        raise KeyError(name)

    def core_lines(self, word: str) -> list[str]:
        """What the fake core was told, by the first word of it."""
        lines = self.core_log.read_text().splitlines() if self.core_log.exists() else []
        return [line for line in lines if line.split()[1] == word]

    def core_pid(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int(children.read_text().split()[0])

    def eventually(self, holds: Callable[[], bool], seconds: float = 10) -> None:
        """Wait for something that another process is about to do."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, "did not come to hold"
            time.sleep(0.01)

    def is_ready(self) -> bool:
        try:
            return self.get("/ready").status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


Launch = Callable[..., RunningServer]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def unused_port() -> Callable[[], int]:
    """A function that finds a free port."""
    return free_port


def end(process: "subprocess.Popen[bytes]") -> None:
    """One that was told to leave: it takes its core and its files along, if it can."""
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def launch_server(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """Starts servers; ends those that a test left running."""
    servers: list[RunningServer] = []
    client = httpx.Client(timeout=30)

    def launch(
        *, wait: bool = True, environment: dict[str, str] | None = None, **settings: object
    ) -> RunningServer:
        folder = tmp_path_factory.mktemp("server")
        port = free_port()
        max_num_seqs = settings.pop("max_num_seqs", 64)
        given = {"model": str(model_dir), "served_model_names": (MODEL_NAME, "alias"),
                 "host": "127.0.0.1", "port": port, **settings}  # fmt: skip
        config = EngineConfig(model=str(model_dir), max_num_seqs=int(str(max_num_seqs)))
        logs = {"FAKE_CORE_LOG": str(folder / "core.log"), "TERMINATION_LOG": str(folder / "end")}
        with (folder / "stderr").open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, str(HERE / "serve_fake.py"),
                 msgspec.json.encode(ServerSettings(**given)).decode(), config.to_json().decode()],
                env={**os.environ, **logs, **(environment or {})},
                stderr=stderr,
            )  # fmt: skip
        server = RunningServer(
            process,
            f"http://127.0.0.1:{port}",
            folder / "core.log",
            folder / "stderr",
            folder / "end",
            client,
        )
        servers.append(server)
        if wait:
            server.eventually(server.is_ready, 20)
        return server

    yield launch
    for server in servers:
        server.process.terminate()
    for server in servers:
        end(server.process)
    client.close()


@pytest.fixture(scope="session")
def server(launch_server: Launch) -> RunningServer:
    """One server with a fast core, for all tests that leave it as it was."""
    return launch_server()


@pytest.fixture(scope="session")
def slow_server(launch_server: Launch) -> RunningServer:
    """One whose core takes 20 ms a step and has two seats: requests can be met at any stage."""
    return launch_server(environment={"FAKE_STEP_SECONDS": "0.02"}, max_num_seqs=2)
