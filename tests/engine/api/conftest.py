"""A small real tokenizer, and real servers around a fake core."""

import json
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
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from quire_engine.config import EngineConfig
from quire_engine.settings import ServerSettings

HERE = Path(__file__).parent
MODEL_NAME = "fake"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "w"), ("hell", "o"), ("a", "b"), ("Ã", "¼")]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder without weights: byte-level BPE of 256 bytes, a few merges, three special
    tokens.
    """
    folder = tmp_path_factory.mktemp("model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*SPECIAL, *alphabet, *("".join(pair) for pair in MERGES)]
    backend = tokenizers.Tokenizer(
        models.BPE({token: index for index, token in enumerate(vocabulary)}, MERGES)
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}})
    )
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2]}))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


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
