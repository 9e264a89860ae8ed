"""Wrong input is refused where it is given, in words that say how to mend it."""

import httpx
import openai
import pytest

from quire_cluster import kube, serving
from quire_cluster.errors import CommandError

pytestmark = pytest.mark.e2e

ADAPTER = {"name": "tuned", "uri": "hf://org/tuned"}


@pytest.mark.parametrize(
    ("name", "spec", "words"),
    [
        ("chat", {"model": {"uri": "ftp://host/model"}}, ["ftp://host/model", "hf://"]),
        (
            "chat",
            {"scaling": {"mode": "builtin", "minReplicas": 3, "maxReplicas": 2}},
            ["minReplicas", "maxReplicas"],
        ),
        (
            "chat",
            {"engine": {"quantization": "int8"}, "resources": {"gpus": 1}},
            ["engine.quantization", "resources.gpus"],
        ),
        (
            "chat",
            {"model": {"uri": serving.MODEL, "adapters": [ADAPTER, ADAPTER]}},
            ["adapters", "Duplicate", "tuned"],
        ),
        (
            "tuned",
            {"model": {"uri": serving.MODEL, "adapters": [ADAPTER]}},
            ["adapters[].name", "metadata.name"],
        ),
        (
            "chat",
            {"model": {"uri": serving.MODEL, "servedName": "tuned", "adapters": [ADAPTER]}},
            ["adapters[].name", "servedName"],
        ),
        (
            "chat",
            {"model": {"uri": "pvc://disk/model", "adapters": [ADAPTER]}},
            ["adapters[].uri", "pvc://"],
        ),
        (
            "chat",
            {"model": {"uri": serving.MODEL, "adapters": [ADAPTER | {"uri": "hf://o/n/x.gguf"}]}},
            ["hf://o/n/x.gguf", "adapters[].uri", "pvc://claim/path"],
        ),
        (
            "chat",
            {"model": {"uri": serving.MODEL, "adapters": [ADAPTER | {"name": "a b"}]}},
            ["adapters", "a b"],
        ),
        ("7b", {}, ["7b", "beginning with a letter"]),
        ("a" * 41, {}, ["name", "40"]),
    ],
)
def test_the_api_server_refuses(
    namespace: str, name: str, spec: kube.Json, words: list[str]
) -> None:
    with pytest.raises(CommandError) as refusal:
        kube.apply(serving.manifest(name, **spec), namespace)
    for word in words:
        assert word in str(refusal.value)


def test_a_mistyped_field_is_refused(namespace: str) -> None:
    with pytest.raises(CommandError, match="replica_count"):
        kube.apply(serving.manifest(replica_count=2), namespace)


def _post(client: openai.OpenAI, body: bytes) -> httpx.Response:
    return httpx.post(
        f"{client.base_url}chat/completions",
        content=body,
        headers={"Content-Type": "application/json"},
        timeout=30,
    )


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b"{not json", 400, "JSON"),
        (b'{"model": "other", "messages": [{"role": "user", "content": "x"}]}', 404, "other"),
        (
            b'{"model": "chat", "max_tokens": -1, "messages": [{"role": "user", "content": "x"}]}',
            400,
            "max_tokens",
        ),
        (
            b'{"model": "chat", "frobnicate": 1, "messages": [{"role": "user", "content": "x"}]}',
            400,
            "frobnicate",
        ),
    ],
)
def test_the_engine_answers_in_openais_error_shape(
    client: openai.OpenAI, body: bytes, status: int, word: str
) -> None:
    answer = _post(client, body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert word in error["message"]


def test_a_prompt_too_long_names_both_numbers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        serving.ask(client, "word " * 20_000)
    assert "8192" in str(refusal.value).replace(",", "")
