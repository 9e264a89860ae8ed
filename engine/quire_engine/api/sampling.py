"""From what a client asked for to what the core is told: defaults, ranges that depend on the model,
limits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from quire_engine.api.errors import InvalidRequest, PromptTooLong
from quire_engine.api.protocol import (
    MAX_STOP_CHARS,
    MAX_STOP_STRINGS,
    ChatCompletionRequest,
    CompletionRequest,
)
from quire_engine.messages import SamplingParams

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions
SEED_MASK = 2**63 - 1


@dataclass(frozen=True)
class ModelLimits:
    """What the loaded model can take."""

    max_model_len: int
    vocab_size: int
    eos_token_ids: frozenset[int]


def stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    """The stop strings, checked."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MAX_STOP_STRINGS:
        raise InvalidRequest(
            f"stop must hold at most {MAX_STOP_STRINGS} strings, got {len(stops)}; send fewer",
            param="stop",
        )
    for text in stops:
        if not 1 <= len(text) <= MAX_STOP_CHARS:
            raise InvalidRequest(
                f"a stop string must have 1 to {MAX_STOP_CHARS} characters, got {len(text)}",
                param="stop",
            )
    return stops


def sampling_params(
    request: ChatCompletionRequest | CompletionRequest,
    *,
    prompt_len: int,
    limits: ModelLimits,
    num_logprobs: int | None,
    choice: int,
) -> SamplingParams:
    """What the core is told for the `choice`-th answer to a prompt of `prompt_len` tokens."""
    max_tokens = _max_tokens(request, prompt_len, limits)
    min_tokens = request.min_tokens or 0
    if min_tokens > max_tokens:
        raise InvalidRequest(
            f"min_tokens must be <= max_tokens ({max_tokens}), got {min_tokens}; lower it",
            param="min_tokens",
        )
    ends = frozenset() if request.ignore_eos else limits.eos_token_ids
    stops = ends.union(check_token_ids(request.stop_token_ids or (), limits, "stop_token_ids"))
    return SamplingParams(
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        top_k=max(0, request.top_k or 0),
        min_p=request.min_p or 0.0,
        seed=None if request.seed is None else (request.seed + choice) & SEED_MASK,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        stop_token_ids=tuple(sorted(stops)),
        num_logprobs=num_logprobs,
    )


def check_token_ids(token_ids: Sequence[int], limits: ModelLimits, param: str) -> tuple[int, ...]:
    """`token_ids`, all in the vocabulary."""
    highest = max(token_ids, default=0)
    if highest >= limits.vocab_size:
        raise InvalidRequest(
            f"token ids must be < {limits.vocab_size} (the vocabulary's size), got {highest}; "
            "tokenize with this model's own tokenizer",
            param=param,
        )
    return tuple(token_ids)


def _max_tokens(
    request: ChatCompletionRequest | CompletionRequest, prompt_len: int, limits: ModelLimits
) -> int:
    room = limits.max_model_len - prompt_len
    is_chat = isinstance(request, ChatCompletionRequest)
    if room < 1:
        raise PromptTooLong(
            f"prompt and answer must fit {limits.max_model_len} tokens (the model's context here), "
            f"got a prompt of {prompt_len}; shorten it or raise --max-model-len",
            param="messages" if is_chat else "prompt",
        )
    asked, param = _asked_tokens(request)
    if asked is None:
        return room if is_chat else min(DEFAULT_COMPLETION_TOKENS, room)
    if asked > room:
        raise PromptTooLong(
            f"prompt and answer must fit {limits.max_model_len} tokens (the model's context here), "
            f"got a prompt of {prompt_len} and {param}={asked}; lower {param} to {room} or shorten "
            "the prompt",
            param=param,
        )
    return asked


def _asked_tokens(request: ChatCompletionRequest | CompletionRequest) -> tuple[int | None, str]:
    """The bound and the name that the client gave it; chat has an old name and a new one."""
    if not isinstance(request, ChatCompletionRequest) or request.max_completion_tokens is None:
        return request.max_tokens, "max_tokens"
    if request.max_tokens not in (None, request.max_completion_tokens):
        raise InvalidRequest(
            f"max_tokens and max_completion_tokens must agree, got {request.max_tokens} and "
            f"{request.max_completion_tokens}; send max_completion_tokens alone",
            param="max_tokens",
        )
    return request.max_completion_tokens, "max_completion_tokens"
