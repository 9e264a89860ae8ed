"""Chat templates: jinja2 in its sandbox, with what transformers gives a template and nothing more.

Same environment as transformers' `apply_chat_template` (5.23): trim_blocks, lstrip_blocks, loop
controls, a `tojson` that escapes no HTML, `raise_exception`, `strftime_now`, and `{% generation
%}`, which only marks text for training. A template comes with a model and is untrusted code: hence
the immutable sandbox.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from quire_engine.api.errors import InvalidRequest
from quire_engine.api.protocol import ChatMessage
from quire_engine.errors import ModelCorrupt

RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` renders what is inside it."""

    tags = {"generation"}  # noqa: RUF012  jinja2's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller: Macro) -> str:
        return str(caller())


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:  # noqa: A002  templates may name the argument
    return datetime.now().strftime(format)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class ChatTemplate:
    """A model's way to write a conversation as one text."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Raises ModelCorrupt when `source` is no template. `special_tokens`: bos_token, eos_token,
        …
        """
        try:
            self._template = _environment().from_string(source)
        except TemplateSyntaxError as error:
            raise ModelCorrupt(
                f"the chat template must be jinja2, got line {error.lineno}: {error.message}; "
                "mend chat_template.jinja in the model folder"
            ) from error
        self._special_tokens = special_tokens

    def render(
        self,
        messages: Sequence[ChatMessage],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as text. InvalidRequest when the template refuses it."""
        variables = variables or {}
        if taken := sorted(RESERVED & variables.keys()):
            raise InvalidRequest(
                f"chat_template_kwargs must not set {', '.join(taken)}; use the request's fields",
                param="chat_template_kwargs",
            )
        try:
            return self._template.render(
                **dict(self._special_tokens)
                | dict(variables)
                | {
                    "messages": [_turn(message) for message in messages],
                    "tools": None,
                    "documents": None,
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        except Exception as error:  # untrusted code on a user's data may raise anything
            raise InvalidRequest(
                f"messages must suit the model's chat template, which says: {error}; change them",
                param="messages",
            ) from error


def _turn(message: ChatMessage) -> dict[str, str]:
    role = "system" if message.role == "developer" else message.role
    turn = {"role": role, "content": message.text()}
    return turn if message.name is None else turn | {"name": message.name}
