"""The request bodies: what a client may send, field by field, in OpenAI's names and vLLM's for
extras.

Three kinds of fields, and no fourth that would be ignored in silence:

- *supported*: typed below with its range;
- *known, not built*: in `NOT_SUPPORTED`, with the values that ask for nothing and so may pass;
- *unknown*: refused by name.

`user`, `safety_identifier` and `prompt_cache_key` are by OpenAI's definition hints that change no
answer: taken. `user` goes to the request log, and is who shares fairly with others while requests
wait.

msgspec decodes and checks in one pass over the bytes (0.08 s to import where pydantic takes 0.4 s,
which every pod would pay at start). Its messages are rewritten to rule + input + way out on the
error path only.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec

from quire_engine.api.errors import InvalidRequest

Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]
TokenId = Annotated[int, msgspec.Meta(ge=0)]

MAX_CHOICES = 128  # OpenAI's limit for n
MAX_LOGPROBS = 20  # OpenAI's limit for top_logprobs
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 1024

NOT_SUPPORTED: Mapping[str, tuple[object, ...]] = {
    # OpenAI's, chat and completions
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (),
    "prediction": (),
    "presence_penalty": (0,),
    "prompt_cache_retention": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none",),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
    # vLLM's
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "chat_template": (),
    "continue_final_message": (False,),
    "documents": ([],),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "prompt_logprobs": (),
    "repetition_penalty": (1,),
    "request_id": (),
    "return_token_ids": (False,),
    "spaces_between_special_tokens": (True,),
    "structured_outputs": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
}


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a stream is told."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class _Generate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What chat and completions share."""

    model: str | None = None  # None: the one that is served
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    user: str | None = None

    # vLLM's extras
    add_special_tokens: bool | None = (
        None  # chat: false, the template writes them; completions: true
    )
    cache_salt: Annotated[str, msgspec.Meta(min_length=1, max_length=256)] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    min_p: Probability | None = None
    min_tokens: Annotated[int, msgspec.Meta(ge=0)] | None = None
    priority: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    """The lower, the earlier; 0 where none is given."""
    skip_special_tokens: bool | None = None
    stop_token_ids: Annotated[list[TokenId], msgspec.Meta(max_length=1024)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=-1)] | None = None  # -1 and 0: the whole vocabulary

    # Known, not built: see NOT_SUPPORTED
    allowed_token_ids: Any = None
    bad_words: Any = None
    frequency_penalty: Any = None
    length_penalty: Any = None
    logit_bias: Any = None
    logits_processors: Any = None
    metadata: Any = None
    presence_penalty: Any = None
    prompt_logprobs: Any = None
    repetition_penalty: Any = None
    request_id: Any = None
    response_format: Any = None
    return_token_ids: Any = None
    service_tier: Any = None
    spaces_between_special_tokens: Any = None
    structured_outputs: Any = None
    truncate_prompt_tokens: Any = None
    use_beam_search: Any = None
    best_of: Any = None
    echo: Any = None


class CompletionRequest(_Generate, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/completions."""

    prompt: str | list[str | TokenId | list[TokenId]]
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    suffix: Any = None


class TextPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A piece of a message's content. Text is the only kind that the models here read."""

    type: Literal["text"]
    text: str


Role: TypeAlias = Literal["system", "developer", "user", "assistant"]


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One turn. `developer` is OpenAI's newer word for `system`, the one that templates know."""

    role: Role
    content: str | list[TextPart]
    name: str | None = None
    refusal: None = None
    audio: None = None
    annotations: list[Any] | None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], msgspec.Meta(max_length=0)] | None = None

    def text(self) -> str:
        """The content as one string; parts joined by newlines, as vLLM does for text templates."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class ChatCompletionRequest(_Generate, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], msgspec.Meta(min_length=1)]
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    add_generation_prompt: bool | None = None  # vLLM's; default true
    chat_template_kwargs: dict[str, Any] | None = None  # vLLM's; variables for the template

    audio: Any = None
    chat_template: Any = None
    continue_final_message: Any = None
    documents: Any = None
    function_call: Any = None
    functions: Any = None
    modalities: Any = None
    moderation: Any = None
    parallel_tool_calls: Any = None
    prediction: Any = None
    prompt_cache_retention: Any = None
    reasoning_effort: Any = None
    store: Any = None
    tool_choice: Any = None
    tools: Any = None
    verbosity: Any = None
    web_search_options: Any = None


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /tokenize: a `prompt`, or `messages` through the chat template."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], msgspec.Meta(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[TokenId]


Body = TypeVar("Body", bound=msgspec.Struct)

_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>.*)`", re.DOTALL)


def parse(kind: type[Body], raw: bytes) -> Body:
    """The body `raw` as a `kind`. InvalidRequest names the field that breaks a rule."""
    try:
        body = msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        raise _explained(str(error), _decoded(raw)) from error
    except _BAD_JSON as error:
        raise _invalid_json(raw, error) from error
    if isinstance(body, _Generate):
        refuse_unsupported(body)
    return body


def refuse_unsupported(body: msgspec.Struct) -> None:
    """InvalidRequest when a known field that is not built asks for something."""
    for name in body.__struct_fields__:
        if name in NOT_SUPPORTED:
            value = getattr(body, name)
            if value is not None and value not in NOT_SUPPORTED[name]:
                raise InvalidRequest(
                    f"{name} is not supported, got {_shown(value)}; leave it out",
                    param=name,
                    code="unsupported_parameter",
                )


_BAD_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def _decoded(raw: bytes) -> object:
    """The whole body without its type: a broken rule is reported before broken JSON further on is
    met.
    """
    try:
        return msgspec.json.decode(raw)
    except _BAD_JSON as error:
        raise _invalid_json(raw, error) from error


def _invalid_json(raw: bytes, error: Exception) -> InvalidRequest:
    return InvalidRequest(
        f"the request's body must be one JSON object in UTF-8, got {_shown(raw)}: {error}; mend it",
        code="invalid_json",
    )


def _explained(message: str, body: object) -> InvalidRequest:
    """msgspec's one-liner, with the value that it is about and the way out."""
    found = _AT.match(message)
    assert found is not None  # the pattern's parts are all optional
    what, path = found["what"], found["path"] or ""
    if unknown := _UNKNOWN.match(what):
        name = f"{path}.{unknown['name']}".lstrip(".")
        return InvalidRequest(
            f"Unrecognized request argument supplied: {name}; leave it out",
            param=name,
            code="unknown_parameter",
        )
    if missing := _MISSING.match(what):
        name = f"{path}.{missing['name']}".lstrip(".")
        return InvalidRequest(
            f"{name} is required, got none; send it",
            param=name,
            code="missing_required_parameter",
        )
    value = _value_at(path, body)
    if part := _unsupported_part(path, value):
        return part
    rule = what[:1].lower() + what[1:]
    return InvalidRequest(
        f"{path or 'the body'} breaks its rule: {rule}; got {_shown(value)}; change it",
        param=path or None,
    )


def _unsupported_part(path: str, value: object) -> InvalidRequest | None:
    """Content of other kinds than text, and turns of tools, by name: the usual ways to ask for
    more.
    """
    if re.search(r"\.content\[\d+\]\.type$", path):
        what = f"content of type {_shown(value)}"
    elif path.endswith("].role") and value in ("tool", "function"):
        what = f"role {_shown(value)}"
    elif path.startswith("messages[") and path.endswith(("tool_calls", "function_call", "audio")):
        what = path.rsplit(".", 1)[-1]
    else:
        return None
    return InvalidRequest(
        f"{what} is not supported; send text", param=path, code="unsupported_parameter"
    )


def _value_at(path: str, body: object) -> object:
    """What stands at msgspec's path in the body; where it ends early, the last value on it."""
    value: Any = body
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        try:
            value = value[int(index)] if index else value[name]
        except (KeyError, IndexError, TypeError):
            return value
    return value


def _shown(value: object) -> str:
    text = value.decode(errors="replace") if isinstance(value, bytes) else _as_json(value)
    return text if len(text) <= 100 else text[:100] + "…"


def _as_json(value: object) -> str:
    return msgspec.json.encode(value).decode(errors="replace")
