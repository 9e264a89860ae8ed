"""Bodies in, fields or a 400 with the field's name out."""

import json

import pytest

from quire_engine.api.errors import InvalidRequest
from quire_engine.api.protocol import (
    NOT_SUPPORTED,
    ChatCompletionRequest,
    CompletionRequest,
    TokenizeRequest,
    parse,
)

MESSAGES = [{"role": "user", "content": "hi"}]


def chat(**fields: object) -> ChatCompletionRequest:
    return parse(ChatCompletionRequest, json.dumps({"messages": MESSAGES, **fields}).encode())


def completion(**fields: object) -> CompletionRequest:
    return parse(CompletionRequest, json.dumps({"prompt": "hi", **fields}).encode())


def refused(raw: bytes, kind: type = ChatCompletionRequest) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(kind, raw)
    return caught.value


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[1", b'{"messages":[{"role":"user","content":"x"}],"n":-3, oops}', b"\xff",
     b'{"messages":[{"role":"user","content":"\\ud800"}]}', b"[" * 100_000,
     b'{"messages":[{"role":"user","content":"x"}],"temperature":NaN}',
     b'{"messages":[{"role":"user","content":"x"}],"temperature":1e400}'],
)  # fmt: skip
def test_what_is_no_json_is_refused_as_such(raw: bytes) -> None:
    assert refused(raw).code == "invalid_json"


@pytest.mark.parametrize("raw", [b"[]", b"1", b'"text"', b"null"])
def test_a_body_must_be_an_object(raw: bytes) -> None:
    assert "object" in refused(raw).message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": True}, "n"),
        ({"n": 1.5}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -5}, "max_completion_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 3}, "logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role"),
    ],
)
def test_a_bad_value_is_named_with_its_rule(fields: dict[str, object], param: str) -> None:
    error = refused(json.dumps({"messages": MESSAGES, **fields}).encode())
    assert error.param == param
    assert param in error.message
    assert "got" in error.message


def test_unknown_fields_are_named() -> None:
    error = refused(json.dumps({"messages": MESSAGES, "temprature": 1}).encode())
    assert (error.param, error.code) == ("temprature", "unknown_parameter")
    error = refused(json.dumps({"messages": [{**MESSAGES[0], "colour": 1}]}).encode())
    assert error.param == "messages[0].colour"


def test_missing_fields_are_named() -> None:
    error = refused(b"{}")
    assert (error.param, error.code) == ("messages", "missing_required_parameter")


def test_a_priority_is_a_whole_number_of_64_bits() -> None:
    assert chat(priority=-3).priority == -3
    assert completion().priority is None
    for bad in (0.5, "high", 2**63):
        with pytest.raises(InvalidRequest, match="priority breaks its rule"):
            completion(priority=bad)


ASKING = {
    "audio": {"voice": "a"}, "best_of": 2, "echo": True, "frequency_penalty": 0.5,
    "function_call": "auto", "functions": [{}], "logit_bias": {"1": 1}, "metadata": {"a": "b"},
    "modalities": ["audio"],
    "moderation": {}, "parallel_tool_calls": True, "prediction": {}, "presence_penalty": -1,
    "prompt_cache_retention": "24h", "reasoning_effort": "low",
    "response_format": {"type": "json_object"},
    "service_tier": "flex", "store": True, "suffix": "x", "tool_choice": "auto", "tools": [{}],
    "verbosity": "low", "web_search_options": {}, "allowed_token_ids": [1], "bad_words": ["x"],
    "chat_template": "{{ 1 }}", "continue_final_message": True, "documents": [{}],
    "length_penalty": 2, "logits_processors": [{}], "prompt_logprobs": 1,
    "repetition_penalty": 1.1, "request_id": "x", "return_token_ids": True,
    "spaces_between_special_tokens": False, "structured_outputs": {}, "truncate_prompt_tokens": 1,
    "use_beam_search": True,
}  # fmt: skip


def test_each_known_field_that_is_not_built_has_a_case_here() -> None:
    assert ASKING.keys() == NOT_SUPPORTED.keys()


@pytest.mark.parametrize("name", sorted(NOT_SUPPORTED))
def test_what_is_not_built_is_refused_by_name_and_neutral_values_pass(name: str) -> None:
    kinds = [k for k in (chat, completion) if name in k().__struct_fields__]
    assert kinds
    for make in kinds:
        with pytest.raises(InvalidRequest, match=rf"^{name} is not supported, got ") as caught:
            make(**{name: ASKING[name]})
        assert caught.value.param == name
        make(**{name: None})
        for neutral in NOT_SUPPORTED[name]:
            make(**{name: neutral})


@pytest.mark.parametrize(
    ("message", "what"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "image_url"),
        ({"role": "tool", "content": "4", "tool_call_id": "x"}, "tool"),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "tool_calls"),
        ({"role": "assistant", "content": "x", "audio": {"id": "a"}}, "audio"),
    ],
)
def test_other_content_than_text_is_refused_by_name(message: object, what: str) -> None:
    error = refused(json.dumps({"messages": [message]}).encode())
    assert what in error.message


def test_hints_that_change_no_answer_are_taken() -> None:
    body = chat(user="u", safety_identifier="s", prompt_cache_key="k")
    assert (body.user, body.safety_identifier, body.prompt_cache_key) == ("u", "s", "k")


def test_an_assistants_turn_can_be_sent_back_as_it_came() -> None:
    turn = {"role": "assistant", "content": "x", "refusal": None, "annotations": [], "audio": None,
            "function_call": None, "tool_calls": []}  # fmt: skip
    assert chat(messages=[*MESSAGES, turn]).messages[1].text() == "x"


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(messages=[{"role": "user", "content": parts}]).messages[0].text() == "a\nb"


@pytest.mark.parametrize("prompt", ["a", ["a", "b"], [1, 2], [[1, 2], [3]]])
def test_a_prompt_has_four_forms(prompt: object) -> None:
    assert completion(prompt=prompt).prompt == prompt


def test_tokenize_takes_its_own_fields_only() -> None:
    assert refused(b'{"prompt":"a","stream":true}', TokenizeRequest).param == "stream"
