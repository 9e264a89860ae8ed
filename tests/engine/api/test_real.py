"""The whole engine on SmolLM2-135M-Instruct: a server process, a core process, OpenAI's client."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

MODEL = Path("~/.cache/quire/models/SmolLM2-135M-Instruct").expanduser()
READY_SECONDS = 120  # 8 is the goal, measured by the bench; here the machine may be busy

pytestmark = pytest.mark.model


FLAGS = (
    "--served-model-name", "smol", "--device", "cpu", "--max-num-seqs", "16",
    "--kv-cache-memory-bytes", str(256 << 20),
)  # fmt: skip


class RealServer:
    """`quire-engine serve` on loopback."""

    def __init__(self, port: int, stderr: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.stderr = stderr
        with stderr.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "quire_engine", "serve", str(MODEL), "--host", "127.0.0.1",
                 "--port", str(port), *FLAGS],
                stderr=log,
                env={**os.environ, "TERMINATION_LOG": str(stderr.with_name("end"))},
            )  # fmt: skip

    def metric(self, name: str) -> float:
        text = httpx.get(self.url + "/metrics").text
        found = re.search(rf"^{re.escape(name)}(?:{{.*}})? (.*)$", text, re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    def until(self, path: str) -> float:
        """Seconds until `path` answers 200."""
        begun = time.monotonic()
        while time.monotonic() - begun < READY_SECONDS:
            assert self.process.poll() is None, self.stderr.read_text()
            try:
                if httpx.get(self.url + path).status_code == 200:
                    return time.monotonic() - begun
            except httpx.TransportError:
                pass
            time.sleep(0.02)
        raise AssertionError(self.stderr.read_text())


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, unused_port: Any) -> Iterator[RealServer]:
    server = RealServer(unused_port(), tmp_path_factory.mktemp("real") / "stderr")
    server.until("/health")
    server.until("/ready")
    yield server
    server.process.terminate()
    try:
        server.process.wait(20)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def client(real: RealServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=real.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def test_its_cache_has_the_blocks_that_are_planned(real: RealServer) -> None:
    planned = subprocess.run(
        [sys.executable, "-m", "quire_engine", "plan", str(MODEL), "--json", "--", *FLAGS],
        check=True, capture_output=True,
    )  # fmt: skip
    plan = json.loads(planned.stdout)["plan"]
    page = httpx.get(real.url + "/metrics").text
    [line] = [line for line in page.splitlines() if line.startswith("vllm:cache_config_info{")]
    assert f'num_gpu_blocks="{plan["kvBlocks"]}"' in line
    assert f'kv_cache_bytes="{plan["kvBlocks"] * 16 * plan["kvBytesPerToken"]}"' in line
    served = httpx.get(real.url + "/v1/models").json()["data"][0]["max_model_len"]
    assert served == plan["maxModelLen"]
    assert plan["maxConcurrency"] == round(plan["kvBlocks"] / -(-served // 16), 2)


QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]


def test_it_names_paris(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="smol", messages=QUESTION, temperature=0)
    assert answer.choices[0].message.content is not None
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"


def test_it_streams_the_same_answer(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="smol", messages=QUESTION, temperature=0)
    with client.chat.completions.create(
        model="smol", messages=QUESTION, temperature=0, stream=True
    ) as events:
        text = "".join(event.choices[0].delta.content or "" for event in events)
    assert text == whole.choices[0].message.content


def test_a_seed_gives_the_same_answer_alone_and_in_company(client: openai.OpenAI) -> None:
    def ask(seed: int) -> str:
        answer = client.completions.create(
            model="smol", prompt="Once upon a time", max_tokens=24, temperature=1.0, seed=seed
        )
        return answer.choices[0].text

    alone = ask(5)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(ask, [5, 6, 7, 5]))
    assert together[0] == together[3] == alone
    assert len(set(together)) == 3


def test_choices_differ_and_logprobs_are_probabilities(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="smol", messages=QUESTION, n=3, seed=1, temperature=1.5, max_tokens=12,
        logprobs=True, top_logprobs=3,
    )  # fmt: skip
    assert len({choice.message.content for choice in answer.choices}) > 1
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content
    for token in logprobs.content:
        top = [candidate.logprob for candidate in token.top_logprobs]
        assert token.logprob <= 0
        assert top == sorted(top, reverse=True)


def test_a_repeated_prompt_comes_from_the_prefix_cache(client: openai.OpenAI) -> None:
    prompt = "The quick brown fox jumps over the lazy dog. " * 8

    def cached() -> int:
        answer = client.completions.create(model="smol", prompt=prompt, max_tokens=1)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        return answer.usage.prompt_tokens_details.cached_tokens or 0

    cached()
    assert cached() >= 64


def test_a_client_that_leaves_frees_its_blocks_within_a_step(real: RealServer) -> None:
    body = {"prompt": "Tell me everything.", "max_tokens": 4000, "stream": True, "ignore_eos": True}
    free = real.metric("quire_kv_blocks_free")
    with httpx.stream("POST", real.url + "/v1/completions", json=body, timeout=30) as response:
        lines = response.iter_lines()
        assert json.loads(next(lines).removeprefix("data: "))["choices"]
        assert real.metric("vllm:kv_cache_usage_perc") > 0
    deadline = time.monotonic() + 5
    while real.metric("vllm:kv_cache_usage_perc") > 0:
        assert time.monotonic() < deadline
    assert real.metric("vllm:num_requests_running") == 0
    assert real.metric("quire_kv_blocks_free") == free


def test_sigterm_lets_it_finish(real: RealServer) -> None:
    """Last in the file: the server is gone after it."""
    body = {"prompt": "Count to one hundred:", "max_tokens": 64, "ignore_eos": True}
    with ThreadPoolExecutor(3) as pool:
        answers = [
            pool.submit(httpx.post, real.url + "/v1/completions", json=body, timeout=60)
            for _ in range(3)
        ]
        while real.metric("vllm:num_requests_running") < 3:
            time.sleep(0.005)
        real.process.send_signal(signal.SIGTERM)
        assert [answer.result().status_code for answer in answers] == [200] * 3
        assert all(a.result().json()["usage"]["completion_tokens"] == 64 for a in answers)
    assert real.process.wait(20) == 0
