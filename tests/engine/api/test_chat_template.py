"""Rendering equals transformers', and a template can do no harm."""

from typing import Any

import msgspec
import pytest

from quire_engine.api.chat_template import ChatTemplate
from quire_engine.api.errors import InvalidRequest
from quire_engine.api.protocol import ChatMessage
from quire_engine.errors import ModelCorrupt

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
CHAT = [
    {"role": "system", "content": 'Be <brief> & "kind".'},
    {"role": "user", "content": "Hi, wörld 日本"},
    {"role": "assistant", "content": " Hello. "},
    {"role": "user", "content": "2 < 3?"},
]

TEMPLATES = {
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' + m.role }}\n{{ m['content'] + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama2": (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
        "{% set messages = messages[1:] %}{% endif %}\n{% for m in messages %}\n"
        "  {% if m.role == 'user' %}\n[INST] "
        "{{ system ~ ' ' if loop.first and system is defined }}{{ m.content | trim }} [/INST]\n"
        "  {%- else -%}\n{{ m.content }}{{ eos_token }}{% endif %}\n{% endfor %}"
    ),
    "loop controls": (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{{ m.content }}{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}"
    ),
    "tojson": (
        "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}"
        "{{ messages[0].content | tojson(ensure_ascii=True) }}"
    ),
    "generation": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    ),
    "namespace": (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
        "{% endfor %}{{ ns.n }}"
    ),
    "variables": (
        "{{ enable_thinking | default('unset') }} {{ tools is none }} {{ documents is none }}"
    ),
}


def messages(chat: list[dict[str, str]]) -> list[ChatMessage]:
    return [msgspec.convert(turn, ChatMessage) for turn in chat]


@pytest.mark.parametrize("prompted", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_it_renders_as_transformers_does(name: str, prompted: bool) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    variables: dict[str, Any] = {"enable_thinking": False} if name == "variables" else {}
    (theirs,), _ = render_jinja_template(
        conversations=[CHAT],
        chat_template=TEMPLATES[name],
        add_generation_prompt=prompted,
        **SPECIAL,
        **variables,
    )
    ours = ChatTemplate(TEMPLATES[name], SPECIAL).render(
        messages(CHAT), add_generation_prompt=prompted, variables=variables
    )
    assert ours == theirs


def test_developer_is_told_as_system() -> None:
    template = ChatTemplate("{{ messages[0].role }}", {})
    assert template.render([ChatMessage(role="developer", content="x")]) == "system"


def test_what_a_template_refuses_is_the_clients_error() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        template.render(messages(CHAT))


def test_strftime_now_tells_the_date() -> None:
    assert ChatTemplate("{{ strftime_now('%Y') }}", {}).render(messages(CHAT)).isdigit()


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.popen('id') }}",
        "{% for i in range(10000000) %}{% endfor %}",
    ],
)
def test_the_sandbox_holds(attack: str) -> None:
    with pytest.raises(InvalidRequest, match="chat template"):
        ChatTemplate(attack, {}).render(messages(CHAT))


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt"])
def test_variables_may_not_replace_the_requests_own(name: str) -> None:
    with pytest.raises(InvalidRequest, match=name):
        ChatTemplate("x", {}).render(messages(CHAT), variables={name: []})


def test_a_broken_template_says_where() -> None:
    with pytest.raises(ModelCorrupt, match="line 2"):
        ChatTemplate("\n{% if %}", {})
