"""What a handler refuses before it spends anything on a request."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request

from quire_engine.api.client import CoreClient
from quire_engine.api.errors import InvalidRequest, PromptTooLong, QueueFull
from quire_engine.api.front import KEY_NUMBER
from quire_engine.api.handlers import Handlers, _sharer
from quire_engine.api.metrics import Metrics
from quire_engine.api.sampling import ModelLimits
from quire_engine.messages import AddRequest, CoreReady, RequestId, SamplingParams
from quire_engine.settings import ServerSettings

READY = CoreReady(
    max_model_len=4096,
    num_blocks=100,
    block_size=16,
    vocab_size=1000,
    max_num_seqs=2,
    max_num_batched_tokens=512,
    dtype="float32",
    device="cpu",
    kernels="none",
    weight_bytes=0,
    kv_cache_bytes=0,
    startup_seconds={},
)


class CountingModel:
    """Counts what it is asked to tokenize, and stops there."""

    limits = ModelLimits(max_model_len=8, vocab_size=1000, eos_token_ids=frozenset())

    def __init__(self) -> None:
        self.num_encoded = 0

    async def encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        self.num_encoded += 1
        return (1,)

    async def encode_chat(self, messages: Any, **options: Any) -> tuple[int, ...]:
        self.num_encoded += 1
        return (1,)


@pytest.fixture
def client() -> CoreClient:
    """Two seats and a queue of three, in front of a core that takes everything and says nothing."""
    requests = SimpleNamespace(send=lambda frame, flags: None)
    client = CoreClient(
        SimpleNamespace(requests=requests),  # type: ignore[arg-type]
        Metrics("fake"),
        max_num_queued_reqs=3,
    )
    client.ready = READY
    return client


@pytest.fixture
def model() -> CountingModel:
    return CountingModel()


@pytest.fixture
def handlers(client: CoreClient, model: CountingModel) -> Handlers:
    settings = ServerSettings(model="fake", served_model_names=("fake",))
    return Handlers(settings, client, lambda: model)  # type: ignore[arg-type, return-value]


def request(body: dict[str, Any]) -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


def fill(client: CoreClient, count: int) -> None:
    adds = [
        AddRequest(request_id=RequestId(str(n)), prompt_token_ids=(1,), sampling=SamplingParams())
        for n in range(count)
    ]
    client.submit(adds, arrived=0.0)


@pytest.mark.parametrize(
    "body", [{"prompt": ["a"] * 6}, {"prompt": ["a"] * 2, "n": 3}, {"prompt": [[1]] * 6}]
)
async def test_more_prompts_than_ever_fit_are_refused_before_they_are_tokenized(
    handlers: Handlers, model: CountingModel, body: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequest, match=r"must be <= 5 .* got 6; split the request"):
        await handlers.completions(request(body))
    assert model.num_encoded == 0


@pytest.mark.parametrize("route", ["completions", "chat_completions"])
async def test_a_full_queue_is_told_before_anything_is_tokenized(
    handlers: Handlers, client: CoreClient, model: CountingModel, route: str
) -> None:
    fill(client, 4)
    body = {"prompt": ["a", "b"]} if route == "completions" else {
        "messages": [{"role": "user", "content": "a"}], "n": 2}  # fmt: skip
    with pytest.raises(QueueFull):
        await getattr(handlers, route)(request(body))
    assert model.num_encoded == 0


async def test_the_token_ids_of_one_prompt_are_one_prompt(handlers: Handlers) -> None:
    with pytest.raises(PromptTooLong, match="got a prompt of 10"):  # refused for its length alone
        await handlers.completions(request({"prompt": list(range(10))}))


def sharers(user: str | None, key_number: int | None) -> str:
    scope = {"type": "http", "method": "POST", "headers": []}
    if key_number is not None:
        scope["state"] = {KEY_NUMBER: key_number}
    return _sharer(Request(scope), user)


def test_who_shares_is_the_user_under_its_key_else_the_key_else_nobody() -> None:
    told = [
        sharers(user, key)
        for user in (None, "", "alice", "bob", "a" * 99999)
        for key in (None, 0, 1)
    ]
    assert len(set(told)) == len(told)
    assert sharers(None, None) == ""
    assert sharers("alice", 0) == sharers("alice", 0)
    assert max(map(len, told)) <= 16
