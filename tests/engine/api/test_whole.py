"""The whole server around a tiny model: what ends it, what must not, and who is told."""

import json
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from quire_cluster.tiny_models import TinyModel
from quire_cluster.tiny_server import TinyServer, tiny_server
from quire_cluster.tiny_tokenizer import VOCAB_SIZE

COMPLETIONS = "/v1/completions"
# Seconds of one core for a prompt of 2,000 tokens, no layer of which takes a tenth of one.
DEEP = TinyModel(num_layers=24, vocab_size=VOCAB_SIZE, max_model_len=2048)
LONG_PROMPT = [5 + number % 200 for number in range(2000)]


def post(server: TinyServer, body: dict[str, Any]) -> httpx.Response:
    """On a connection of its own."""
    return httpx.post(server.url + COMPLETIONS, json=body, timeout=60)


def streamed(server: TinyServer, body: dict[str, Any]) -> list[Any]:
    """The events of a stream, parsed, [DONE] left out."""
    body = {**body, "stream": True}
    with httpx.stream("POST", server.url + COMPLETIONS, json=body, timeout=60) as response:
        assert response.status_code == 200, response.read()
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    return [json.loads(event) for event in events if event != "[DONE]"]


def num_open(server: TinyServer) -> float:
    return server.metric("vllm:num_requests_running") + server.metric("vllm:num_requests_waiting")


def all_free(server: TinyServer) -> bool:
    return num_open(server) == 0 and server.metric("vllm:kv_cache_usage_perc") == 0


def test_a_prefill_far_longer_than_the_limit_is_no_hang(tmp_path: Path) -> None:
    """Limit and prefill are scaled down together: 1 s for 60, and one step of several seconds for
    one of minutes. What keeps /health green is the counter, which moves with each kernel call."""
    flags = ("--max-num-batched-tokens", "2048", "--num-threads", "1",
             "--health-timeout", "1", "--ready-timeout", "1")  # fmt: skip
    with tiny_server(tmp_path, *flags, model=DEEP) as server, ThreadPoolExecutor(1) as pool:
        num_steps = server.metric("quire_step_tokens_count")
        begun, seen = time.monotonic(), set()
        answer = pool.submit(post, server, {"prompt": LONG_PROMPT, "max_tokens": 1})
        while not answer.done():
            for path in ("/health", "/ready"):
                probe = server.get(path)
                seen.add((probe.status_code, probe.json()["reason"]))
        assert answer.result().status_code == 200
        assert time.monotonic() - begun > 1.5, "the model must be larger for this machine"
        assert server.metric("quire_step_tokens_count") == num_steps + 1, "one step"
    assert seen <= {(200, "Idle"), (200, "Working"), (200, "Ready")}
    assert (200, "Working") in seen


@pytest.fixture(scope="module")
def chunked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyServer]:
    """Two seats, and prompts in chunks of 32 tokens: a long one takes seconds and many steps."""
    flags = ("--max-num-batched-tokens", "32", "--max-num-seqs", "2", "--num-threads", "1")
    with tiny_server(tmp_path_factory.mktemp("chunked"), *flags, model=DEEP) as server:
        yield server


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_leaves_while_its_prompt_is_read_leaves_nothing(
    chunked: TinyServer, n: int, stream: bool
) -> None:
    """With n=3 one prompt is being read, and two wait."""
    aborted = chunked.metric("quire_requests_aborted_total")
    generated = chunked.metric("vllm:generation_tokens_total")
    body = {"prompt": LONG_PROMPT, "max_tokens": 40, "n": n, "stream": stream,
            "cache_salt": f"{n} {stream}"}  # fmt: skip
    raw = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", chunked.port)) as client:
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(raw)}\r\n\r\n"
        client.sendall(head.encode() + raw)
        chunked.eventually(lambda: chunked.metric("vllm:kv_cache_usage_perc") > 0)
        assert chunked.metric("vllm:num_requests_waiting") == n - 1
    chunked.eventually(lambda: all_free(chunked))
    assert chunked.metric("vllm:generation_tokens_total") == generated, "it was still being read"
    assert chunked.metric("quire_requests_aborted_total") == aborted + n


def test_what_the_prefix_cache_gives_and_to_whom(chunked: TinyServer) -> None:
    """Hits are told an answer at a time and in sum; a salt and a reset begin anew."""
    names = ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total")
    before = [chunked.metric(name) for name in names]

    def cached(**fields: str) -> int:
        body = {"prompt": LONG_PROMPT[7:57], "max_tokens": 1, **fields}
        usage = post(chunked, body).json()["usage"]
        count: int = usage["prompt_tokens_details"]["cached_tokens"]
        return count

    assert [cached(), cached()] == [0, 48]
    assert [cached(cache_salt="tenant"), cached(cache_salt="tenant")] == [0, 48]
    assert httpx.post(chunked.url + "/reset_prefix_cache").status_code == 200
    assert [cached(), cached(), cached(cache_salt="tenant")] == [0, 48, 0]
    gained = [chunked.metric(name) - was for name, was in zip(names, before, strict=True)]
    assert gained == [7 * 50, 3 * 48]
    chunked.eventually(lambda: all_free(chunked))


def killed(server: TinyServer) -> None:
    """As the kernel's out-of-memory killer does it."""
    os.kill(server.core_pid, signal.SIGKILL)


def out_of_memory(server: TinyServer) -> None:
    """Not a byte more for the core, where a queue of 32 MB is on its way."""
    resource.prlimit(server.core_pid, resource.RLIMIT_DATA, (0, 0))


@pytest.mark.parametrize("strike", [killed, out_of_memory])
def test_a_core_that_dies_tells_every_open_request_and_ends_the_server(
    tmp_path: Path, strike: Callable[[TinyServer], None]
) -> None:
    model = TinyModel(vocab_size=VOCAB_SIZE, max_model_len=8192)
    endless = {"prompt": "hello", "max_tokens": 8000, "ignore_eos": True}
    long = {"prompt": LONG_PROMPT, "max_tokens": 6000, "ignore_eos": True}
    large = {"prompt": LONG_PROMPT * 4, "max_tokens": 9, "n": 32}  # 4 MB of the core's lists
    flags = ("--max-num-seqs", "4", "--max-num-queued-tokens", "10000000")
    with tiny_server(tmp_path, *flags, model=model) as server:
        with ThreadPoolExecutor(40) as pool:
            streams = [pool.submit(streamed, server, {**endless, "n": n}) for n in (1, 2)]
            server.eventually(lambda: server.metric("vllm:num_requests_running") == 3)
            whole = [pool.submit(post, server, long) for _ in range(30)]
            server.eventually(lambda: server.metric("vllm:num_requests_waiting") >= 29)
            strike(server)
            more = [pool.submit(post, server, large) for _ in range(8)]
            for answer in whole:
                assert answer.result().status_code == 500
                assert answer.result().json()["error"]["code"] == "engine_died"
            for stream in streams:
                assert stream.result()[-1]["error"]["code"] == "engine_died"
            assert [answer for answer in map(end_of, more) if answer not in ENDS] == []
        assert server.process.wait(10) == 70
        assert json.loads((tmp_path / "end").read_text())["message"]


# of what is sent while the server ends: an error, or no connection any more
ENDS = (500, 503, "no connection")


def end_of(answer: "Future[httpx.Response]") -> int | str:
    if isinstance(answer.exception(), httpx.TransportError):
        return "no connection"
    return answer.result().status_code


def test_a_drain_under_load_loses_nothing(tmp_path: Path) -> None:
    body = {"prompt": "hello", "max_tokens": 150, "ignore_eos": True}
    with tiny_server(tmp_path, "--max-num-seqs", "4", "--shutdown-timeout", "60") as server:
        with ThreadPoolExecutor(24) as pool:
            whole = [pool.submit(post, server, body) for _ in range(8)]
            streams = [pool.submit(streamed, server, {**body, "n": n}) for n in (1, 2) * 4]
            server.eventually(lambda: num_open(server) == 20)
            server.process.send_signal(signal.SIGTERM)
            server.eventually(lambda: not server.is_ready())
            assert server.get("/health").status_code == 200
            refused = pool.submit(post, server, body).result()
            assert (refused.status_code, refused.headers["connection"]) == (503, "close")
            told = [answer.result().json()["usage"]["completion_tokens"] for answer in whole]
            assert told == [150] * 8
            for stream, n in zip(streams, (1, 2) * 4, strict=True):
                ends = [event["choices"][0]["finish_reason"] for event in stream.result()]
                assert sorted(end for end in ends if end) == ["length"] * n
        assert server.process.wait(20) == 0
        assert "drained aborted=0" in server.log.read_text()
