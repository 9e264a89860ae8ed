"""The core's death, its garbage, its queue: every accepted request gets an answer."""

import asyncio
import contextlib
import gc
import json
import os
import signal
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest
import zmq

from quire_engine.api.client import OUTPUTS_A_TURN, CoreClient
from quire_engine.api.errors import ClientGone, GenerationFailed
from quire_engine.api.metrics import Metrics
from quire_engine.messages import (
    AddRequest,
    CoreReady,
    CoreStats,
    FromCore,
    Output,
    RequestId,
    SamplingParams,
    StepOutputs,
)

LONG = {"prompt": "hello", "max_tokens": 4000}
SLOW = {"FAKE_STEP_SECONDS": "0.01"}
READY = CoreReady(
    max_model_len=100, num_blocks=10, block_size=16, vocab_size=50, max_num_seqs=4,
    max_num_batched_tokens=512, dtype="float32", device="cpu", kernels="", weight_bytes=1,
    kv_cache_bytes=1, startup_seconds={},
)  # fmt: skip


def post(server: Any, body: dict[str, Any]) -> httpx.Response:
    """From a thread: a client of its own."""
    return httpx.post(server.url + "/v1/completions", json=body, timeout=30)


def stream_text(server: Any, body: dict[str, Any], started: threading.Event) -> str:
    with httpx.stream(
        "POST", server.url + "/v1/completions", json={**body, "stream": True}, timeout=30
    ) as response:
        text = ""
        for part in response.iter_text():
            text += part
            started.set()
    return text


def test_a_killed_core_fails_every_open_request_and_ends_the_process(launch_server: Any) -> None:
    server = launch_server(environment=SLOW, max_num_seqs=2)
    started = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        streamed = pool.submit(stream_text, server, LONG, started)
        assert started.wait(10)
        whole = [pool.submit(post, server, LONG) for _ in range(2)]  # one runs, one waits
        server.eventually(lambda: server.metric("vllm:num_requests_waiting") == 1)
        os.kill(server.core_pid(), signal.SIGKILL)
        for answer in whole:
            assert answer.result().status_code == 500
            assert answer.result().json()["error"]["code"] == "engine_died"
        last = streamed.result().rstrip().rsplit("\n\n", 1)[-1]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert (error["code"], error["type"]) == ("engine_died", "server_error")
    assert server.process.wait(10) == 70
    final = server.stderr.read_text().splitlines()[-1]
    assert final.startswith("quire-engine: the core process must live")
    assert "SIGKILL" in final
    assert json.loads(server.termination_log.read_text())["reason"] == "CoreDied"


def test_a_core_that_fails_while_loading_ends_the_process_with_its_words(
    launch_server: Any,
) -> None:
    fail = {"FAKE_FAIL": "65:ModelCorrupt:model.safetensors is 3 bytes short: fetch it again"}
    server = launch_server(wait=False, environment=fail)
    assert server.process.wait(20) == 65
    assert server.stderr.read_text().splitlines()[-1] == (
        "quire-engine: model.safetensors is 3 bytes short: fetch it again"
    )
    assert json.loads(server.termination_log.read_text()) == {
        "reason": "ModelCorrupt",
        "message": "model.safetensors is 3 bytes short: fetch it again",
    }


def test_a_model_without_a_tokenizer_ends_the_process(launch_server: Any, tmp_path: Any) -> None:
    server = launch_server(wait=False, model=str(tmp_path))
    assert server.process.wait(20) == 66
    assert "tokenizer.json" in server.stderr.read_text().splitlines()[-1]


def test_a_core_of_another_language_is_ended(launch_server: Any) -> None:
    server = launch_server(environment={"FAKE_GARBAGE": "1"})
    assert server.post("/v1/completions", LONG).status_code == 500
    assert server.process.wait(10) == 70
    assert "one installation" in server.stderr.read_text().splitlines()[-1]


def test_while_it_loads_it_is_healthy_and_not_ready(launch_server: Any) -> None:
    server = launch_server(wait=False, environment={"FAKE_LOAD_SECONDS": "600"})

    def is_up() -> bool:
        try:
            return bool(server.get("/health").status_code == 200)
        except httpx.TransportError:
            return False

    server.eventually(is_up)
    assert server.get("/health").json()["reason"] == "Loading"
    assert server.get("/ready").json() == {"ready": False, "reason": "Loading"}
    assert server.get("/ready").status_code == 503
    refused = server.post("/v1/completions", LONG)
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "2"
    assert refused.json()["error"]["code"] == "not_ready"
    assert server.post("/reset_prefix_cache", None).status_code == 503
    assert server.metric("vllm:num_requests_waiting") == 0
    assert server.get("/version").json()["device"] is None
    assert server.stop() == 0


def test_a_hung_core_turns_health_red_and_a_slow_one_does_not(launch_server: Any) -> None:
    server = launch_server(health_timeout=1, environment=SLOW)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, server, {**LONG, "max_tokens": 300})
        server.eventually(lambda: server.get("/health").json()["reason"] == "Working")
        core = server.core_pid()
        os.kill(core, signal.SIGSTOP)
        server.eventually(lambda: server.get("/health").status_code == 503)
        assert server.get("/health").json()["reason"] == "Stalled"
        unready = server.get("/ready")
        assert (unready.status_code, unready.json()["reason"]) == (503, "Stalled")
        assert "no layer has run for " in unready.json()["message"]
        os.kill(core, signal.SIGCONT)
        server.eventually(lambda: server.get("/health").status_code == 200)
        assert answer.result().status_code == 200
    server.eventually(lambda: server.get("/health").json()["reason"] == "Idle")


def test_a_core_that_stands_still_is_unready_long_before_it_is_unhealthy(
    launch_server: Any,
) -> None:
    server = launch_server(ready_timeout=1, environment=SLOW)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, server, {**LONG, "max_tokens": 300})
        server.eventually(lambda: server.get("/health").json()["reason"] == "Working")
        core = server.core_pid()
        os.kill(core, signal.SIGSTOP)
        server.eventually(lambda: not server.is_ready())
        assert server.get("/ready").json()["reason"] == "Stalled"
        assert server.get("/health").status_code == 200, "nothing is to be ended yet"
        os.kill(core, signal.SIGCONT)
        server.eventually(server.is_ready)
        assert answer.result().status_code == 200


def test_a_full_queue_answers_429_and_takes_what_fits(launch_server: Any) -> None:
    """Two seats and a queue of three: five are taken at once, the sixth is not."""
    server = launch_server(environment=SLOW, max_num_seqs=2, max_num_queued_reqs=3)
    body = {"prompt": "hello", "max_tokens": 100}
    with ThreadPoolExecutor(5) as pool:
        taken = [pool.submit(post, server, body) for _ in range(5)]
        server.eventually(lambda: len(server.core_lines("add")) == 5)
        assert server.metric("vllm:num_requests_waiting") >= 3
        refused = server.post("/v1/completions", body)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        error = refused.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
        assert [answer.result().status_code for answer in taken] == [200] * 5
    assert server.post("/v1/completions", body).status_code == 200
    assert server.post("/v1/completions", {**body, "n": 6}).status_code == 400


def test_too_many_waiting_prompt_tokens_answer_429(launch_server: Any) -> None:
    """A prompt longer than the bound is taken where none waits; beside it none has room."""
    server = launch_server(max_num_queued_tokens=10)
    core = server.core_pid()
    os.kill(core, signal.SIGSTOP)
    long, short = ({"prompt": [7] * count, "max_tokens": 2} for count in (20, 1))
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(post, server, long)
        server.eventually(lambda: server.metric("quire_queued_prompt_tokens") == 20)
        refused = server.post("/v1/completions", short)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        error = refused.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
        assert "at most 10 prompt tokens may wait" in error["message"]
        assert "20 wait and this request brings 1" in error["message"]
        os.kill(core, signal.SIGCONT)
        assert taken.result().status_code == 200
    assert server.metric("quire_queued_prompt_tokens") == 0
    assert server.post("/v1/completions", short).status_code == 200


def test_prompt_tokens_wait_until_the_first_token_or_the_end() -> None:
    core = SimpleNamespace(requests=SimpleNamespace(send=lambda frame, flags: None))
    client = CoreClient(core, Metrics("fake"), max_num_queued_reqs=9)  # type: ignore[arg-type]
    client.ready = READY
    requests = [
        AddRequest(request_id=RequestId(name), prompt_token_ids=(1,) * 5, sampling=SamplingParams())
        for name in ("answered", "refused", "left")
    ]
    with client.submit(requests, arrived=0.0):
        assert client.num_queued_tokens == 15
        first = Output(request_id=RequestId("answered"), token_ids=(3,))
        client._handle(StepOutputs(outputs=(first, first), stats=client.stats))
        assert client.num_queued_tokens == 10
        error = Output(request_id=RequestId("refused"), token_ids=(), finish_reason="error")
        client._handle(StepOutputs(outputs=(error,), stats=client.stats))
        assert client.num_queued_tokens == 5
    assert client.num_queued_tokens == 0


def test_what_comes_to_be_submitted_when_all_has_failed_fails_alike() -> None:
    """Its body was still being read, or tokenized, when the core died."""
    sent = list[bytes]()
    core = SimpleNamespace(requests=SimpleNamespace(send=lambda frame, flags: sent.append(frame)))
    client = CoreClient(core, Metrics("fake"), max_num_queued_reqs=9)  # type: ignore[arg-type]
    client.ready = READY
    error = GenerationFailed("the engine died", code="engine_died")
    assert client.fail_all(error) == 0
    late = AddRequest(
        request_id=RequestId("late"), prompt_token_ids=(1,), sampling=SamplingParams()
    )
    with pytest.raises(GenerationFailed, match="the engine died"):
        client.submit([late], arrived=0.0)
    assert (sent, client.num_open) == ([], 0)


async def test_what_a_client_left_behind_is_gone_without_the_garbage_collector() -> None:
    core = SimpleNamespace(requests=SimpleNamespace(send=lambda frame, flags: None))
    client = CoreClient(core, Metrics("fake"), max_num_queued_reqs=9)  # type: ignore[arg-type]
    client.ready = READY
    request = AddRequest(
        request_id=RequestId("left"), prompt_token_ids=(1,), sampling=SamplingParams()
    )

    async def answer() -> Any:
        with client.submit([request], arrived=0.0) as generation:
            generation.leave()
            with contextlib.suppress(ClientGone):
                await generation.next()
            return weakref.ref(generation)

    gc.disable()
    try:
        assert (await answer())() is None
    finally:
        gc.enable()


def test_a_burst_into_free_seats_is_no_queue(launch_server: Any) -> None:
    server = launch_server(environment=SLOW, max_num_seqs=8, max_num_queued_reqs=0)
    body = {"prompt": "hello", "max_tokens": 50}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(server, body).status_code, range(8)))
    assert answers == [200] * 8


def test_what_the_core_has_not_seen_yet_is_counted_as_waiting(launch_server: Any) -> None:
    """The core is stopped: it can neither take the requests nor report."""
    server = launch_server(environment=SLOW)
    core = server.core_pid()
    os.kill(core, signal.SIGSTOP)
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(post, server, {"prompt": "a", "max_tokens": 2}) for _ in range(2)]
        server.eventually(lambda: server.metric("vllm:num_requests_waiting") == 2)
        assert server.metric("vllm:num_requests_running") == 0
        os.kill(core, signal.SIGCONT)
        assert [answer.result().status_code for answer in answers] == [200, 200]
    assert server.metric("vllm:num_requests_waiting") == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_core_does_not_outlive_the_server(launch_server: Any, number: int) -> None:
    """The fake has no PDEATHSIG: on SIGKILL it notices that its parent is gone."""
    server = launch_server()
    core = server.core_pid()
    server.process.send_signal(number)
    server.process.wait(10)
    server.eventually(lambda: not os.path.exists(f"/proc/{core}"), 10)


async def test_a_large_step_is_handed_out_in_turns_and_in_order() -> None:
    """The loop looks at others between two turns, and a second step overtakes none of the first."""
    count = 2 * OUTPUTS_A_TURN + 1
    core = RecordedCore([CoreReady(**READY_FIELDS, max_num_seqs=count), *steps(count)])
    client = CoreClient(core, Metrics("fake"), max_num_queued_reqs=0)  # type: ignore[arg-type]
    client._receive()  # the CoreReady
    await asyncio.sleep(0)  # and that there is no more
    names = [RequestId(str(number)) for number in range(count)]
    params = SamplingParams(max_tokens=2)
    adds = [AddRequest(request_id=n, prompt_token_ids=(1,), sampling=params) for n in names]
    generation = client.submit(adds, arrived=0.0)
    core.is_stepping = True
    client._receive()
    assert core.num_said == 2, "the second step waits as bytes until the first is handed out"
    seen = list[Output]()
    turns = 0
    while generation.is_open:
        seen += await generation.next()
        turns += 1
        await asyncio.sleep(0)
    assert turns >= 4
    assert [output.request_id for output in seen] == names * 2
    assert client.num_open == 0


READY_FIELDS: dict[str, Any] = {
    **dict.fromkeys(("max_model_len", "num_blocks", "block_size", "vocab_size"), 16),
    **dict.fromkeys(("max_num_batched_tokens", "weight_bytes", "kv_cache_bytes"), 16),
    **dict.fromkeys(("dtype", "device", "kernels"), ""),
    "startup_seconds": {},
}


def steps(count: int) -> list[StepOutputs]:
    """A token for each sequence, and each one's last."""
    stats = CoreStats(
        num_running=count, num_waiting=0, kv_cache_usage=0, num_preemptions=0,
        prefix_cache_queries=0, prefix_cache_hits=0, prompt_tokens=0, generation_tokens=0,
        step_tokens=count,
    )  # fmt: skip
    return [
        StepOutputs(
            outputs=tuple(
                Output(request_id=RequestId(str(number)), token_ids=(1,), finish_reason=reason)
                for number in range(count)
            ),
            stats=stats,
        )
        for reason in (None, "length")
    ]


class RecordedCore:
    """Says what it is given, the first message at once and the others when it is stepping."""

    def __init__(self, messages: list[FromCore]) -> None:
        self._frames = [msgspec.msgpack.encode(message) for message in messages]
        self.is_stepping = False
        self.num_said = 0
        self.requests = SimpleNamespace(send=lambda frame, flags: None)
        self.outputs = SimpleNamespace(recv=self._recv)

    def remove_folder(self) -> None:
        """There is none."""

    def _recv(self, flags: int) -> bytes:
        if self.num_said == len(self._frames if self.is_stepping else self._frames[:1]):
            raise zmq.Again
        self.num_said += 1
        return self._frames[self.num_said - 1]
