"""Answers, whole and streamed: one text, OpenAI's shapes, aborts the moment a client leaves."""

import asyncio
import json
import time
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def client(server: Any) -> Any:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def stream(server: Any, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a stream, checked to the byte for form."""
    response = server.post(path, {**body, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    frames = response.text.split("\n\n")
    assert frames[-1] == ""
    assert frames[-2] == "data: [DONE]"
    assert all(frame.startswith("data: {") for frame in frames[:-2])
    return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]


def text_of(events: list[dict[str, Any]], index: int = 0) -> str:
    return "".join(
        choice["text"] if "text" in choice else choice["delta"].get("content", "")
        for event in events
        for choice in event["choices"]
        if choice["index"] == index
    )


def test_a_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="fake", prompt="hello wörld ", max_tokens=20)
    assert answer.choices[0].text == "hello wörld hello wörld hello wö"  # "hello" is one token
    assert answer.choices[0].finish_reason == "length"
    assert answer.id.startswith("cmpl-")
    assert answer.object == "text_completion"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 20
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 20


def test_a_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake", messages=MESSAGES)  # type: ignore[arg-type]
    message = answer.choices[0].message
    assert (message.role, message.content) == ("assistant", "user\nhello")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 16


def test_a_chat_streams_as_openais_client_expects(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="fake",
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},  # type: ignore[arg-type]
    ) as events:
        chunks = list(events)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == "user\nhello"
    assert [c.choices[0].finish_reason for c in chunks[:-1]][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1


def test_a_stream_to_the_byte(slow_server: Any) -> None:
    response = slow_server.post(COMPLETIONS, {"prompt": "ab", "max_tokens": 2, "stream": True})
    first, second, done, end = response.text.split("\n\n")
    head = json.loads(first.removeprefix("data: "))
    common = f'"created":{head["created"]},"model":"fake","choices":[{{"index":0,"text":"ab",'
    assert first == (
        f'data: {{"id":"{head["id"]}",{common}"logprobs":null,"finish_reason":null}}],'
        '"object":"text_completion"}'
    )
    assert second == (
        f'data: {{"id":"{head["id"]}",{common}"logprobs":null,"finish_reason":"length",'
        '"stop_reason":null}],"object":"text_completion"}'
    )
    assert (done, end) == ("data: [DONE]", "")


def test_usage_is_in_the_stream_only_when_asked_for(server: Any) -> None:
    body = {"prompt": "a", "max_tokens": 2}
    assert all("usage" not in event for event in stream(server, COMPLETIONS, body))
    events = stream(server, COMPLETIONS, {**body, "stream_options": {"include_usage": True}})
    assert [event["usage"] is None for event in events] == [True] * (len(events) - 1) + [False]
    assert events[-1]["usage"]["completion_tokens"] == 2


def test_several_prompts_and_choices_are_numbered_in_order(server: Any) -> None:
    body = {"prompt": ["ab", "hello"], "n": 2, "max_tokens": 2, "seed": 7}
    answer = server.post(COMPLETIONS, body).json()
    assert [c["index"] for c in answer["choices"]] == [0, 1, 2, 3]
    assert [c["text"] for c in answer["choices"]] == ["abab"] * 2 + ["hellohello"] * 2
    assert answer["usage"]["prompt_tokens"] == 2
    assert answer["usage"]["completion_tokens"] == 8
    events = stream(server, COMPLETIONS, body)
    assert [text_of(events, i) for i in range(4)] == ["abab"] * 2 + ["hellohello"] * 2
    told = [line for line in server.core_lines("add") if "seed=" in line][-4:]
    assert [line.partition("seed=")[2].partition(",")[0] for line in told] == ["7", "8", "7", "8"]


def test_each_chat_choice_opens_with_its_role(server: Any) -> None:
    events = stream(server, CHAT, {"messages": MESSAGES, "n": 3})
    roles = [c["index"] for e in events for c in e["choices"] if "role" in c["delta"]]
    assert sorted(roles) == [0, 1, 2]
    ends = [c["index"] for e in events for c in e["choices"] if c["finish_reason"]]
    assert sorted(ends) == [0, 1, 2]


@pytest.mark.parametrize("prompt", ["hello ab", ["hello ab"], [270, 5], [[270, 5]]])
def test_prompts_may_come_as_text_or_token_ids(server: Any, prompt: Any) -> None:
    answer = server.post(COMPLETIONS, {"prompt": prompt, "max_tokens": 1})
    assert answer.json()["usage"]["completion_tokens"] == 1


def test_parameters_reach_the_core(server: Any) -> None:
    body = {"prompt": "a", "max_tokens": 3, "min_tokens": 2, "temperature": 0, "top_p": 0.5,
            "top_k": 9, "min_p": 0.1, "seed": 3, "stop_token_ids": [9], "ignore_eos": True,
            "cache_salt": "tenant"}  # fmt: skip
    assert server.post(COMPLETIONS, body).status_code == 200
    told = server.core_lines("add")[-1]
    assert "temperature=0.0, top_p=0.5, top_k=9, min_p=0.1, seed=3, max_tokens=3" in told
    assert "min_tokens=2, stop_token_ids=(9,)" in told
    assert told.endswith(" tenant")


def test_stop_tokens_end_an_answer_and_are_not_shown(server: Any) -> None:
    (space,) = server.post("/tokenize", {"prompt": " "}).json()["tokens"]
    body = {"prompt": "ab hello", "max_tokens": 9, "stop_token_ids": [space]}
    choice = server.post(COMPLETIONS, body).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("ab", "stop", space)
    shown = server.post(COMPLETIONS, {**body, "include_stop_str_in_output": True}).json()
    assert shown["choices"][0]["text"] == "ab "


def test_end_of_sequence_can_be_ignored_and_shown(server: Any) -> None:
    body = {
        "messages": MESSAGES,
        "max_tokens": 10,
        "ignore_eos": True,
        "skip_special_tokens": False,
    }
    answer = server.post(CHAT, body).json()["choices"][0]
    assert answer["finish_reason"] == "length"
    assert answer["message"]["content"].startswith("<|im_start|>user\nhello<|im_end|>")


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    prompt=st.text("ab \nüh日", min_size=1, max_size=12),
    stops=st.lists(st.text("ab \nü日", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_a_streams_text_is_the_whole_answers_and_the_reference_cut(
    server: Any, prompt: str, stops: list[str]
) -> None:
    body = {"prompt": prompt, "max_tokens": 30}
    raw = server.post(COMPLETIONS, body).json()["choices"][0]["text"]
    whole = server.post(COMPLETIONS, {**body, "stop": stops}).json()["choices"][0]
    events = stream(server, COMPLETIONS, {**body, "stop": stops})
    ends = [raw.find(stop) + len(stop) for stop in stops if stop in raw]
    if ends:
        first = max((s for s in stops if raw[: min(ends)].endswith(s)), key=len)
        expected, reason = raw[: min(ends) - len(first)], ("stop", first)
    else:
        expected, reason = raw, ("length", None)
    assert whole["text"] == text_of(events) == expected
    last = events[-1]["choices"][0]
    assert (whole["finish_reason"], whole["stop_reason"]) == reason
    assert (last["finish_reason"], last["stop_reason"]) == reason


def test_a_stop_string_ends_the_sequence_in_the_core(slow_server: Any) -> None:
    answer = slow_server.post(COMPLETIONS, {"prompt": "ab.", "max_tokens": 500, "stop": "b."})
    choice = answer.json()["choices"][0]
    assert (choice["text"], choice["stop_reason"]) == ("a", "b.")
    request_id = answer.json()["id"] + "-0"
    slow_server.eventually(lambda: any(request_id in x for x in slow_server.core_lines("abort")))
    slow_server.eventually(lambda: slow_server.metric("vllm:num_requests_running") == 0)


def test_chat_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="fake", messages=[{"role": "user", "content": "ü日"}], logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    shown = [token for token in logprobs.content if not token.token.startswith("<|")]
    assert (
        b"".join(bytes(t.bytes or []) for t in shown).decode() == answer.choices[0].message.content
    )
    assert all(len(token.top_logprobs) == 2 for token in logprobs.content)
    assert logprobs.content[0].top_logprobs[0].logprob == -0.5


def test_completion_logprobs_whole_and_streamed(server: Any) -> None:
    body = {"prompt": "hello ab", "max_tokens": 5, "logprobs": 1}
    whole = server.post(COMPLETIONS, body).json()["choices"][0]
    assert "".join(whole["logprobs"]["tokens"]) == whole["text"]
    for offset, token in zip(
        whole["logprobs"]["text_offset"], whole["logprobs"]["tokens"], strict=True
    ):
        assert whole["text"][offset:].startswith(token)
    assert whole["logprobs"]["top_logprobs"][0] == {"hello": -0.5}
    events = stream(server, COMPLETIONS, body)
    for column in ("tokens", "text_offset", "token_logprobs", "top_logprobs"):
        streamed = [x for e in events for c in e["choices"] for x in c["logprobs"][column]]
        assert streamed == whole["logprobs"][column]


# ---- clients that leave -------------------------------------------------------------------------


def aborted(server: Any, marker: int) -> int:
    return len(server.core_lines("abort")) - marker


async def leave(server: Any, path: str, body: dict[str, Any], *, after_bytes: bool) -> float:
    """Send a request and close the connection; when that was, monotonic."""
    adds = len(server.core_lines("add"))
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(server.url).port)
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
    if after_bytes:
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    else:
        while len(server.core_lines("add")) == adds:
            await asyncio.sleep(0.005)
    writer.transport.abort()
    return time.monotonic()


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("n", [1, 3])
async def test_a_client_that_leaves_is_aborted_at_once(
    slow_server: Any, streamed: bool, n: int
) -> None:
    """Two seats: with n=3 one choice still waits."""
    marker = len(slow_server.core_lines("abort"))
    body = {"prompt": "hello", "max_tokens": 2000, "n": n, "stream": streamed}
    left = await leave(slow_server, COMPLETIONS, body, after_bytes=streamed)
    await asyncio.to_thread(slow_server.eventually, lambda: aborted(slow_server, marker) == n, 5)
    told = [float(line.split()[0]) for line in slow_server.core_lines("abort")[marker:]]
    assert max(told) - left < 1.0  # a step is 0.02 s; the rest is a busy machine's
    slow_server.eventually(lambda: slow_server.metric("vllm:num_requests_running") == 0)
    assert slow_server.metric("vllm:num_requests_waiting") == 0
    assert slow_server.metric("quire_kv_blocks_free") == 10_000


async def test_clients_that_leave_count_as_aborted(slow_server: Any) -> None:
    before = slow_server.metric("quire_requests_aborted_total")
    body = {"prompt": "hello", "max_tokens": 2000, "stream": True}
    await leave(slow_server, COMPLETIONS, body, after_bytes=True)
    await asyncio.to_thread(
        slow_server.eventually,
        lambda: slow_server.metric("quire_requests_aborted_total") == before + 1,
    )


def test_a_client_that_reads_slowly_gets_everything(server: Any) -> None:
    """More than socket buffers hold: the server waits, and merges what piled up."""
    body = {"prompt": "hello wörld ", "max_tokens": 1500, "stream": True, "logprobs": 5}
    with httpx.stream("POST", server.url + COMPLETIONS, json=body, timeout=30) as response:
        lines = response.iter_lines()
        first = next(lines)
        server.eventually(lambda: server.metric("vllm:num_requests_running") == 0, 30)
        rest = [line for line in lines if line]
    events = [json.loads(line.removeprefix("data: ")) for line in [first, *rest[:-1]]]
    assert sum(len(e["choices"][0]["logprobs"]["tokens"]) for e in events) == 1500
    assert text_of(events).startswith("hello wörld hello wörld")
