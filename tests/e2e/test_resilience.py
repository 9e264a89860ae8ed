"""Things killed under it: it comes back, and nobody gets a wrong answer."""

import time

import httpx
import openai
import pytest

from quire_cluster import kube, serving
from quire_cluster.faults import AuditLog, Write

pytestmark = pytest.mark.e2e

IDLE_SECONDS = 20
OPERATOR_USER = "system:serviceaccount:quire-system:quire"


def test_a_killed_pod_comes_back_with_the_same_answers(chat: str, client: openai.OpenAI) -> None:
    before = serving.ask(client)
    [pod] = _pods(chat)
    kube.kubectl("delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force",
                 namespace=chat)  # fmt: skip
    kube.wait_until(
        lambda: [p for p in _pods(chat) if p["metadata"]["uid"] != pod["metadata"]["uid"]],
        60,
        "a new pod",
    )
    kube.wait_ready(chat, "chat")
    assert kube.wait_until(lambda: _answer(client), 30, "an answer") == before


def _answer(client: openai.OpenAI) -> str | None:
    """The answer, or None while the endpoints still lead nowhere."""
    try:
        return serving.ask(client)
    except openai.APIConnectionError:
        return None


def test_the_operator_killed_mid_reconcile_converges_and_restarts_no_model_pod(chat: str) -> None:
    pods_before = {p["metadata"]["uid"] for p in _pods(chat)}
    for n in range(3):
        kube.apply(serving.manifest(f"more-{n}"), chat)
    _kill_operator()
    for n in range(3):
        kube.wait_ready(chat, f"more-{n}")
    assert {p["metadata"]["uid"] for p in _pods(chat)} == pods_before
    assert all(
        s["restartCount"] == 0 for p in _pods(chat) for s in p["status"]["containerStatuses"]
    )
    for n in range(3):
        kube.kubectl("delete", "inferenceservice", f"more-{n}", namespace=chat)


def test_an_unchanged_world_is_not_written_to(chat: str, audit_log: AuditLog) -> None:
    """A new operator passes over everything again, and sends nothing but Leases."""
    _kill_operator()
    kube.wait_until(lambda: _lease_writes(audit_log), 60, "a leader")
    time.sleep(IDLE_SECONDS)
    writes = audit_log.writes(OPERATOR_USER)
    assert [write for write in writes if write.resource != "leases"] == []


def _lease_writes(audit_log: AuditLog) -> list[Write]:
    return [write for write in audit_log.writes(OPERATOR_USER) if write.resource == "leases"]


def _kill_operator() -> None:
    kube.kubectl("delete", "pod", "-l", "app.kubernetes.io/name=quire", "--grace-period=0",
                 "--force", namespace="quire-system")  # fmt: skip


def _pods(namespace: str) -> list[kube.Json]:
    return kube.items("pods", namespace, "serving.quire.dev/service=chat")


def test_a_client_that_leaves_frees_its_blocks(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="chat",
        messages=[{"role": "user", "content": "Tell a very long story."}],
        max_tokens=2000,
        stream=True,
    )
    next(iter(stream))
    assert _gauge(client, "vllm:num_requests_running") == 1
    stream.close()
    kube.wait_until(lambda: _gauge(client, "vllm:num_requests_running") == 0, 5, "its end")
    assert _gauge(client, "vllm:kv_cache_usage_perc") == 0


def _gauge(client: openai.OpenAI, name: str) -> float:
    text = httpx.get(str(client.base_url).removesuffix("v1/") + "metrics").text
    [line] = [line for line in text.splitlines() if line.startswith(name + "{")]
    return float(line.rsplit(" ", 1)[1])
