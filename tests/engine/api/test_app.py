"""Every wrong request gets OpenAI's error shape; every right one its answer. On a real socket."""

import json
import time
from typing import Any

import httpx
import pytest

from quire_engine.config import LoraModule

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION = {"model": "fake", "prompt": "hello"}


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error object, whole and alone."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize(
    ("path", "raw", "code"),
    [
        ("/v1/chat/completions", b"{", "invalid_json"),
        ("/v1/completions", b"\xff\xfe", "invalid_json"),
        ("/tokenize", b"", "invalid_json"),
        ("/v1/chat/completions", b"{}", "missing_required_parameter"),
        ("/v1/completions", b'{"prompt":"a","foo":1}', "unknown_parameter"),
        ("/v1/completions", b'{"prompt":"a","echo":true}', "unsupported_parameter"),
    ],
)
def test_bad_bodies(server: Any, path: str, raw: bytes, code: str) -> None:
    assert error_of(server.client.post(server.url + path, content=raw), 400)["code"] == code


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"prompt": "a" * 5000}, "prompt"),
        ({"prompt": [5] * 5000}, "prompt"),
        ({"max_tokens": 4096}, "max_tokens"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [1000]}, "prompt"),
        ({"stop": ""}, "stop"),
        ({"stop_token_ids": [1000]}, "stop_token_ids"),
        ({"n": 128, "prompt": ["a"] * 20}, "n"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_bad_completions(server: Any, fields: dict[str, Any], param: str) -> None:
    error = error_of(server.post("/v1/completions", {**COMPLETION, **fields}), 400)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


def test_a_prompt_that_is_too_long_is_told_with_numbers_and_the_way_out(server: Any) -> None:
    long = {"messages": [{"role": "user", "content": "xyz " * 2000}]}
    error = error_of(server.post("/v1/chat/completions", long), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    assert "4096" in error["message"]
    assert "--max-model-len" in error["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize"])
def test_an_unknown_model_is_not_found(server: Any, path: str) -> None:
    body = {**(CHAT if "chat" in path else COMPLETION), "model": "gpt-4o"}
    error = error_of(server.post(path, body), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "'gpt-4o'" in error["message"]
    assert "fake" in error["message"]


def test_unknown_paths_and_wrong_methods(server: Any) -> None:
    assert error_of(server.get("/v1/engines"), 404)["code"] == "unknown_url"
    assert error_of(server.get("/v1/models/"), 404)
    response = server.client.delete(server.url + "/v1/chat/completions")
    assert error_of(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == "POST"
    assert error_of(server.client.post(server.url + "/health"), 405)


def test_top_logprobs_needs_logprobs(server: Any) -> None:
    error = error_of(server.post("/v1/chat/completions", {**CHAT, "top_logprobs": 2}), 400)
    assert error["param"] == "top_logprobs"


@pytest.fixture(scope="module")
def adapted(launch_server: Any) -> Any:
    """A server with one LoRA adapter."""
    return launch_server(lora_modules=(LoraModule("support", "/adapters/support"),))


def test_an_adapter_is_a_model_with_a_parent(adapted: Any) -> None:
    cards = adapted.get("/v1/models").json()["data"]
    told = [(card["id"], card["root"], card["parent"]) for card in cards]
    assert told[0][0::2] == ("fake", None)
    assert told[-1] == ("support", "/adapters/support", "fake")
    assert adapted.get("/v1/models/support").json() == cards[-1]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_the_model_of_a_request_picks_the_adapter(adapted: Any, path: str) -> None:
    body: dict[str, Any] = {"max_tokens": 2, "messages": [{"role": "user", "content": "hello"}]}
    if path == "/v1/completions":
        body = {"max_tokens": 2, "prompt": ["hello", "hell"]}
    before = len(adapted.core_lines("adapter"))
    for model in ("support", "fake", "alias", None):
        answer = adapted.post(path, body | {"model": model})
        assert answer.status_code == 200
        assert answer.json()["model"] == (model or "fake")
    told = adapted.core_lines("adapter")[before:]
    assert [line.split()[-1] for line in told] == ["support"] * len(body.get("prompt", "1"))


def test_a_name_that_nobody_has_stays_unknown(adapted: Any) -> None:
    error = error_of(adapted.post("/v1/completions", {"model": "sales", "prompt": "x"}), 404)
    assert error["code"] == "model_not_found"
    assert "(fake, alias, support), got 'sales'" in error["message"]


def test_adapters_have_vllms_metric(adapted: Any, server: Any) -> None:
    name = "vllm:lora_requests_info"
    since = time.time() - 60
    nobody = {"max_lora": "1", "running_lora_adapters": "", "waiting_lora_adapters": ""}
    assert since < adapted.metric(name, **nobody) <= time.time()
    with pytest.raises(KeyError):
        server.metric(name)


def test_models_are_listed_under_each_name(server: Any) -> None:
    cards = server.get("/v1/models").json()
    assert cards["object"] == "list"
    assert [card["id"] for card in cards["data"]] == ["fake", "alias"]
    assert cards["data"][0]["max_model_len"] == 4096
    assert server.get("/v1/models/alias").json()["id"] == "alias"
    assert error_of(server.get("/v1/models/x/y"), 404)["code"] == "model_not_found"


def test_an_answer_carries_the_name_it_was_asked_by(server: Any) -> None:
    for given, told in (("alias", "alias"), ("fake", "fake"), (None, "fake")):
        answer = server.post("/v1/completions", {"model": given, "prompt": "a", "max_tokens": 1})
        assert answer.json()["model"] == told


def test_tokenize_and_detokenize(server: Any) -> None:
    tokens = server.post("/tokenize", {"prompt": "hello wörld", "return_token_strs": True}).json()
    assert tokens["count"] == len(tokens["tokens"])
    assert tokens["token_strs"][0] == "hello"
    assert tokens["max_model_len"] == 4096
    back = server.post("/detokenize", {"tokens": tokens["tokens"]}).json()
    assert back == {"prompt": "hello wörld"}
    chat = server.post("/tokenize", {"messages": CHAT["messages"]}).json()
    text = server.post("/detokenize", {"tokens": chat["tokens"]}).json()["prompt"]
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert error_of(server.post("/tokenize", {}), 400)["param"] == "prompt"
    assert error_of(server.post("/detokenize", {"tokens": [5000]}), 400)["param"] == "tokens"


def test_the_prefix_cache_is_reset_as_vllms_is(server: Any) -> None:
    before = len(server.core_lines("reset"))
    answer = server.client.post(server.url + "/reset_prefix_cache")
    assert (answer.status_code, answer.content) == (200, b"")
    server.eventually(lambda: len(server.core_lines("reset")) == before + 1)
    assert error_of(server.get("/reset_prefix_cache"), 405)["code"] == "method_not_allowed"


def test_probes_answer(server: Any) -> None:
    assert server.get("/health").json()["status"] == "ok"
    assert server.get("/ready").json() == {"ready": True, "reason": "Ready"}
    version = server.get("/version").json()
    assert (version["device"], version["kernels"]) == ("cpu", "none")
    assert server.client.head(server.url + "/health").status_code == 200


def test_a_long_text_is_tokenized_beside_the_event_loop(server: Any) -> None:
    text = "hello " * 2000
    assert server.post("/tokenize", {"prompt": text}).json()["count"] == 4000


def test_hundreds_of_bad_requests_leave_the_server_as_it_was(server: Any) -> None:
    before = server.metric("vllm:num_requests_running")
    for index in range(200):
        body = json.dumps({**COMPLETION, "n": -index}).encode()[: 10 + index]
        sent = server.client.post(server.url + "/v1/completions", content=body)
        assert sent.status_code == 400
    assert server.metric("vllm:num_requests_running") == before
    assert server.get("/ready").status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_priority_and_who_asks_reach_the_core(launch_server: Any, path: str) -> None:
    server = launch_server(api_keys=("k1", "k2"))
    body: dict[str, Any] = {"max_tokens": 1, "messages": [{"role": "user", "content": "hello"}]}
    if path == "/v1/completions":
        body = {"max_tokens": 1, "prompt": "hello"}
    for key, extra in (("k1", {}), ("k2", {"priority": -7}), ("k2", {"user": "alice"})):
        headers = {"Authorization": f"Bearer {key}"}
        answer = httpx.post(server.url + path, json=body | extra, headers=headers, timeout=30)
        assert answer.status_code == 200
    told = [line.split(" ", 4)[3:] for line in server.core_lines("order")]
    assert told[:2] == [["0", "key 0"], ["-7", "key 1"]]
    [(priority, alice)] = told[2:]
    assert priority == "0"
    assert "key" not in alice
    assert "alice" not in alice
