"""From a request's body to an `Answer`: prompts to ids, parameters to the core's, choices to be
filled.
"""

import time
import uuid
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from quire_engine.api import answers
from quire_engine.api.choice import Choice
from quire_engine.api.client import CoreClient
from quire_engine.api.detokenizer import StopCutter, TextStream
from quire_engine.api.errors import InvalidRequest, ModelNotFound, Unavailable
from quire_engine.api.front import KEY_NUMBER, read_body
from quire_engine.api.generate import Answer, Job
from quire_engine.api.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    parse,
)
from quire_engine.api.sampling import check_token_ids, sampling_params, stop_strings
from quire_engine.api.shapes import AnswerHead, ChatShape, CompletionShape
from quire_engine.api.wire import json_response
from quire_engine.messages import AddRequest, RequestId
from quire_engine.settings import ServerSettings

if TYPE_CHECKING:  # jinja2 is imported in a thread, while the server answers /health already
    from quire_engine.api.served_model import ServedModel

Prompt = tuple[int, ...]


class Handlers:
    """The routes that need the model."""

    def __init__(
        self,
        settings: ServerSettings,
        client: CoreClient,
        model: "Callable[[], ServedModel | None]",
    ) -> None:
        self._settings = settings
        self._client = client
        self._model = model
        self._adapters = {module.name: module.path for module in settings.lora_modules}
        self._created = int(time.time())

    async def chat_completions(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        arrived = time.monotonic()
        model = self._ready_model()
        body = parse(ChatCompletionRequest, await self._read(request))
        self._check_model_name(body.model)
        if body.top_logprobs is not None and not body.logprobs:
            raise InvalidRequest(
                f"top_logprobs needs logprobs=true, got top_logprobs={body.top_logprobs} without; "
                "set logprobs",
                param="top_logprobs",
            )
        self._client.require_room(body.n or 1)
        prompt = await model.encode_chat(
            body.messages,
            add_generation_prompt=body.add_generation_prompt,
            add_special_tokens=body.add_special_tokens,
            variables=body.chat_template_kwargs,
        )
        num_logprobs = (body.top_logprobs or 0) if body.logprobs else None
        head = self._head(body, "chatcmpl", wants_logprobs=num_logprobs is not None)
        adapter, sharer = self._adapter(body.model), _sharer(request, body.user)
        job = _job(head.id, body, [prompt], model, arrived, num_logprobs, adapter, sharer)
        return self._answer(body, job, ChatShape(head, model.tokenizer))

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        arrived = time.monotonic()
        model = self._ready_model()
        body = parse(CompletionRequest, await self._read(request))
        self._check_model_name(body.model)
        given = _given_prompts(body)
        self._client.require_room(len(given) * (body.n or 1))
        prompts = await _encoded(given, body, model)
        head = self._head(body, "cmpl", wants_logprobs=body.logprobs is not None)
        adapter, sharer = self._adapter(body.model), _sharer(request, body.user)
        job = _job(head.id, body, prompts, model, arrived, body.logprobs, adapter, sharer)
        return self._answer(body, job, CompletionShape(head, model.tokenizer))

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize."""
        model = self._ready_model()
        body = parse(TokenizeRequest, await self._read(request))
        self._check_model_name(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise InvalidRequest(
                "exactly one of prompt and messages must be given, got both or none; send one",
                param="prompt",
            )
        if body.messages is not None:
            tokens = await model.encode_chat(
                body.messages,
                add_generation_prompt=body.add_generation_prompt,
                add_special_tokens=body.add_special_tokens,
                variables=body.chat_template_kwargs,
            )
        else:
            tokens = await model.encode(
                body.prompt or "", add_special_tokens=body.add_special_tokens is not False
            )
        texts = [model.tokenizer.token_text(t) for t in tokens] if body.return_token_strs else None
        return json_response(
            answers.Tokens(
                count=len(tokens),
                max_model_len=model.limits.max_model_len,
                tokens=list(tokens),
                token_strs=texts,
            )
        )

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize."""
        model = self._ready_model()
        body = parse(DetokenizeRequest, await self._read(request))
        self._check_model_name(body.model)
        tokens = check_token_ids(body.tokens, model.limits, "tokens")
        text = model.tokenizer.decode(tokens, skip_special_tokens=False)
        return json_response(answers.Text(prompt=text))

    async def reset_prefix_cache(self, request: Request) -> Response:
        """POST /reset_prefix_cache, vLLM's: 200 without a body. What runs is not disturbed."""
        self._ready_model()
        self._client.reset_prefix_cache()
        return Response()

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        names = (*self._names, *self._adapters)
        return json_response(answers.ModelList(data=[self._card(name) for name in names]))

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{model}."""
        name = request.path_params["model"]
        self._check_model_name(name)
        return json_response(self._card(name))

    @property
    def _names(self) -> Sequence[str]:
        return self._settings.served_model_names

    def _card(self, name: str) -> answers.ModelCard:
        ready = self._client.ready
        return answers.ModelCard(
            id=name,
            created=self._created,
            root=self._adapters.get(name, self._settings.model),
            max_model_len=None if ready is None else ready.max_model_len,
            parent=self._names[0] if name in self._adapters else None,
        )

    def _ready_model(self) -> "ServedModel":
        model = self._model()
        if model is None:
            raise Unavailable(
                "the model is not loaded yet; wait for /ready or try again shortly", retry_after=2
            )
        return model

    async def _read(self, request: Request) -> bytes:
        return await read_body(request, self._settings.max_body_bytes)

    def _check_model_name(self, name: str | None) -> None:
        if name is not None and name not in self._names and name not in self._adapters:
            served = ", ".join((*self._names, *self._adapters))
            raise ModelNotFound(
                f"model must be one that is served here ({served}), got {name!r}; "
                "see GET /v1/models",
                param="model",
            )

    def _adapter(self, name: str | None) -> str:
        """The LoRA adapter that a request's `model` means; empty for the model itself."""
        return name if name is not None and name in self._adapters else ""

    def _head(
        self, body: ChatCompletionRequest | CompletionRequest, prefix: str, *, wants_logprobs: bool
    ) -> AnswerHead:
        options = body.stream_options
        if options is not None and not body.stream:
            raise InvalidRequest(
                "stream_options needs stream=true, got it without; set stream or leave it out",
                param="stream_options",
            )
        return AnswerHead(
            id=f"{prefix}-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=body.model or self._names[0],
            wants_logprobs=wants_logprobs,
            usage_in_stream=options is not None and bool(options.include_usage),
        )

    def _answer(
        self,
        body: ChatCompletionRequest | CompletionRequest,
        job: Job,
        shape: ChatShape | CompletionShape,
    ) -> Answer:
        return Answer(
            self._client, job, shape, stream=bool(body.stream), log=self._settings.log_requests
        )


def _given_prompts(body: CompletionRequest) -> list[str | list[int]]:
    """The prompt field's four forms: text, texts, token ids, lists of token ids."""
    given = [body.prompt] if isinstance(body.prompt, str) else list(body.prompt)
    texts: list[str | list[int]] = [item for item in given if not isinstance(item, int)]
    ids = [item for item in given if isinstance(item, int)]
    if ids and texts:
        raise InvalidRequest(
            "prompt must be a text, texts, token ids or lists of token ids, got a mixture; "
            "send one kind",
            param="prompt",
        )
    return [ids] if ids else texts


async def _encoded(
    given: Sequence[str | list[int]], body: CompletionRequest, model: "ServedModel"
) -> list[Prompt]:
    prompts = [await _prompt(item, body, model) for item in given]
    if not prompts or not all(prompts):
        raise InvalidRequest(
            "each prompt must have at least one token, got an empty one; send some text",
            param="prompt",
        )
    return prompts


async def _prompt(item: str | list[int], body: CompletionRequest, model: "ServedModel") -> Prompt:
    if isinstance(item, str):
        return await model.encode(item, add_special_tokens=body.add_special_tokens is not False)
    return check_token_ids(item, model.limits, "prompt")


def _sharer(request: Request, user: str | None) -> str:
    """Who shares the engine with others while requests wait: the body's `user` under its API key,
    else the key, else nobody in particular. Short, whatever was sent.
    """
    key_number = request.scope.get("state", {}).get(KEY_NUMBER)
    if user is None:
        return "" if key_number is None else f"key {key_number}"
    return blake2b(f"{key_number}/{user}".encode(), digest_size=8).hexdigest()


def _job(
    answer_id: str,
    body: ChatCompletionRequest | CompletionRequest,
    prompts: Sequence[Prompt],
    model: "ServedModel",
    arrived: float,
    num_logprobs: int | None,
    adapter: str,
    sharer: str,
) -> Job:
    """The sequences and choices for each of `n` answers to each prompt, numbered as OpenAI does."""
    stops = stop_strings(body.stop)
    num_choices = body.n or 1
    requests, choices = [], []
    for index in range(len(prompts) * num_choices):
        prompt = prompts[index // num_choices]
        params = sampling_params(
            body,
            prompt_len=len(prompt),
            limits=model.limits,
            num_logprobs=num_logprobs,
            choice=index % num_choices,
        )
        request_id = RequestId(f"{answer_id}-{index}")
        requests.append(
            AddRequest(
                request_id=request_id,
                prompt_token_ids=prompt,
                sampling=params,
                cache_salt=body.cache_salt or "",
                adapter=adapter,
                priority=body.priority or 0,
                user=sharer,
            )
        )
        choices.append(_choice(index, request_id, body, prompt, model, stops))
    return Job(requests, choices, num_choices, arrived, user=body.user or "")


def _choice(
    index: int,
    request_id: RequestId,
    body: ChatCompletionRequest | CompletionRequest,
    prompt: Prompt,
    model: "ServedModel",
    stops: Sequence[str],
) -> Choice:
    skip_special_tokens = body.skip_special_tokens is not False
    return Choice(
        index,
        request_id,
        TextStream(model.tokenizer, prompt, skip_special_tokens=skip_special_tokens),
        StopCutter(stops, include_stop=bool(body.include_stop_str_in_output)),
        min_tokens=body.min_tokens or 0,
        show_stop_token=bool(body.include_stop_str_in_output),
        eos_token_ids=model.limits.eos_token_ids,
    )
