"""Requests to what the core is told."""

import pytest

from quire_engine.api.errors import InvalidRequest, PromptTooLong
from quire_engine.api.protocol import ChatCompletionRequest, ChatMessage, CompletionRequest
from quire_engine.api.sampling import (
    ModelLimits,
    check_token_ids,
    sampling_params,
    stop_strings,
)
from quire_engine.messages import SamplingParams

LIMITS = ModelLimits(max_model_len=100, vocab_size=50, eos_token_ids=frozenset([2, 7]))


def chat(**fields: object) -> ChatCompletionRequest:
    return ChatCompletionRequest(messages=[ChatMessage(role="user", content="x")], **fields)


def params(
    request: ChatCompletionRequest | CompletionRequest, prompt_len: int = 10, choice: int = 0
) -> SamplingParams:
    return sampling_params(
        request, prompt_len=prompt_len, limits=LIMITS, num_logprobs=None, choice=choice
    )


def test_defaults_are_openais() -> None:
    told = params(chat())
    assert (told.temperature, told.top_p, told.top_k, told.min_p) == (1.0, 1.0, 0, 0.0)
    assert told.max_tokens == 90  # chat: what fits
    assert params(CompletionRequest(prompt="x")).max_tokens == 16
    assert params(CompletionRequest(prompt="x"), prompt_len=95).max_tokens == 5


def test_zero_is_a_value() -> None:
    told = params(chat(temperature=0.0, seed=0, top_k=-1))
    assert (told.temperature, told.seed, told.top_k) == (0.0, 0, 0)


def test_end_of_sequence_stops_unless_ignored() -> None:
    assert params(chat(stop_token_ids=[9])).stop_token_ids == (2, 7, 9)
    assert params(chat(stop_token_ids=[9], ignore_eos=True)).stop_token_ids == (9,)


def test_choices_of_a_seeded_request_differ_and_stay_in_range() -> None:
    assert [params(chat(seed=5), choice=i).seed for i in range(3)] == [5, 6, 7]
    assert 0 <= (params(chat(seed=-(2**63)), choice=1).seed or 0) < 2**63
    assert params(chat()).seed is None


@pytest.mark.parametrize("prompt_len", [100, 101, 5000])
def test_a_prompt_that_leaves_no_room_is_refused_with_numbers(prompt_len: int) -> None:
    with pytest.raises(PromptTooLong, match=f"100 tokens.*prompt of {prompt_len}; shorten"):
        params(chat(), prompt_len=prompt_len)


def test_prompt_and_answer_must_fit_together() -> None:
    assert params(chat(max_tokens=90)).max_tokens == 90
    with pytest.raises(PromptTooLong, match=r"max_completion_tokens=91; lower .* to 90") as caught:
        params(chat(max_completion_tokens=91))
    assert caught.value.param == "max_completion_tokens"


def test_both_names_of_the_bound_must_agree() -> None:
    assert params(chat(max_tokens=5, max_completion_tokens=5)).max_tokens == 5
    with pytest.raises(InvalidRequest, match="must agree"):
        params(chat(max_tokens=5, max_completion_tokens=6))


def test_min_tokens_stays_below_max_tokens() -> None:
    assert params(chat(min_tokens=5, max_tokens=5)).min_tokens == 5
    with pytest.raises(InvalidRequest, match="min_tokens must be <= max_tokens"):
        params(chat(min_tokens=6, max_tokens=5))


def test_token_ids_must_be_in_the_vocabulary() -> None:
    assert check_token_ids([0, 49], LIMITS, "prompt") == (0, 49)
    with pytest.raises(InvalidRequest, match="must be < 50"):
        check_token_ids([50], LIMITS, "prompt")


@pytest.mark.parametrize(
    ("stop", "stops"), [(None, ()), ("a", ("a",)), (["a", "b"], ("a", "b")), ([], ())]
)
def test_stop_strings(stop: str | list[str] | None, stops: tuple[str, ...]) -> None:
    assert stop_strings(stop) == stops


@pytest.mark.parametrize("stop", ["", ["a", ""], ["x"] * 17, "y" * 1025])
def test_bad_stop_strings_are_refused(stop: str | list[str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        stop_strings(stop)
    assert caught.value.param == "stop"
