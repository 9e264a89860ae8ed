"""`kubectl quire status` and `top` as people run them: by kubectl, on the real cluster."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import openai
import pytest
import yaml

from quire_cluster import kube, serving
from quire_cluster.faults import Hub
from quire_operator.console.document import Document

pytestmark = pytest.mark.e2e

REASON_SECONDS = 60
SLOW_BYTES_PER_SECOND = 20_000_000
Answer = subprocess.CompletedProcess[str]


def quire(*args: str, kubeconfig: Path | None = None) -> Answer:
    """`kubectl quire ARGS`, into a pipe."""
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    if kubeconfig is not None:
        environment["KUBECONFIG"] = str(kubeconfig)
    return subprocess.run(
        ["kubectl", "quire", *args], env=environment, capture_output=True, text=True, check=False
    )


def document(namespace: str, name: str = "chat") -> Document:
    answer = quire("status", name, "-n", namespace, "-o", "json")
    assert answer.returncode == 0, answer.stderr
    return msgspec.json.decode(answer.stdout, type=Document)


def test_a_ready_service(chat: str) -> None:
    told = document(chat)
    assert (told.ready.status, told.ready.reason, told.remedy) == ("True", "Ready", None)
    assert (told.replicas.wanted, told.replicas.ready, told.unseen) == (1, 1, [])
    assert told.model.commit is not None
    assert len(told.model.commit) == 40
    assert told.model.bytes_done == told.model.bytes_total
    assert told.claim is not None
    assert told.claim.phase == "Bound"
    assert told.plan is not None
    assert told.plan.weight_bytes is not None
    assert told.plan.weight_bytes > 250_000_000
    [pod] = told.pods
    live = kube.get("pod", pod.name, chat)
    assert (pod.state, pod.node) == ("Ready", live["spec"]["nodeName"])
    assert pod.load is not None, pod.load_missing
    assert (pod.load.running, pod.load.waiting) == (0, 0)
    assert [revision.wanted for revision in told.revisions] == [True]


def test_the_screen_of_a_ready_service(chat: str) -> None:
    answer = quire("status", "chat", "-n", chat)
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.splitlines()
    assert lines[0].startswith(f"{chat}/chat  Ready, for ")
    assert f"http://chat.{chat}.svc.cluster.local/v1" in answer.stdout
    assert max(map(len, lines)) <= 120
    assert "\x1b" not in answer.stdout
    assert len(lines) < 40, "one screen"


def test_a_service_that_is_being_fetched(namespace: str, hub: Hub) -> None:
    hub.faults(bytes_per_second=SLOW_BYTES_PER_SECOND)
    try:
        kube.apply(serving.manifest(), namespace)
        told = kube.wait_until(lambda: _moving(namespace), 60, "a fetch that tells its rate")
        screen = quire("status", "chat", "-n", namespace).stdout
    finally:
        hub.faults()
    assert told.ready.reason == "Fetching"
    assert told.fetch is not None
    assert (told.fetch.attempt, told.fetch.state, told.fetch.phase) == (1, "Running", "downloading")
    assert told.fetch.pod is not None
    assert told.fetch.pod.state == "Fetching"
    assert told.model.bytes_per_second is not None
    assert told.model.bytes_per_second < 2 * SLOW_BYTES_PER_SECOND
    assert told.model.eta_seconds is not None
    assert "not ready: Fetching" in screen
    assert "downloading for" in screen


def _moving(namespace: str) -> Document | None:
    if kube.get("inferenceservice", "chat", namespace).get("status") is None:
        return None
    told = document(namespace)
    return told if told.model.bytes_per_second and told.ready.reason == "Fetching" else None


def test_a_service_whose_pod_crashes(namespace: str) -> None:
    """A GPU that the node counts and no CUDA device: the engine's last line says so."""
    kube.apply(serving.manifest(resources={"gpus": 1, "memory": "3Gi"}), namespace)
    kube.wait_reason(namespace, "chat", "CrashLoop", 2 * REASON_SECONDS)
    told = document(namespace)
    [pod] = told.pods
    assert not pod.ready
    assert pod.trouble is not None
    assert pod.trouble.startswith("exited with ")
    assert "CUDA" in pod.trouble
    assert told.remedy is not None
    screen = quire("status", "chat", "-n", namespace).stdout
    assert "not ready: CrashLoop" in screen
    assert "To do: " in screen
    assert "CUDA" in screen


def test_a_wrong_name_is_one_sentence(chat: str) -> None:
    answer = quire("status", "caht", "-n", chat)
    said = f"there is no InferenceService caht in namespace {chat}; did you mean chat?\n"
    assert (answer.returncode, answer.stdout, answer.stderr) == (1, "", said)


def test_top_once_under_a_little_load(chat: str, client: openai.OpenAI) -> None:
    burst = serving.Burst(client, num_callers=3, limit_seconds=60)
    try:
        kube.wait_until(lambda: _load_of(chat)[2] != "0", 30, "a request that runs")
        name, ready, running, waiting, kv, ttft, tokens = _load_of(chat, "--interval", "5")
    finally:
        result = burst.stop()
    assert result.errors == ()
    assert (name, ready) == ("chat", "1/1")
    assert 1 <= int(running) + int(waiting) <= 3
    assert kv.endswith("%")
    assert ttft.endswith("s"), "in 5 s some request began"
    assert float(tokens) > 1


def _load_of(namespace: str, *more: str) -> list[str]:
    """The words of chat's line."""
    answer = quire("top", "--once", "-n", namespace, *(more or ("--interval", "0.5")))
    assert answer.returncode == 0, answer.stderr
    [line] = [line for line in answer.stdout.splitlines() if line.startswith("chat ")]
    return line.split()[:7]


@pytest.fixture
def viewer(chat: str, tmp_path: Path) -> Iterator[Path]:
    """The kubeconfig of somebody with the cluster's role `view` in chat's namespace."""
    kube.kubectl("create", "serviceaccount", "viewer", namespace=chat)
    kube.kubectl(
        "create", "rolebinding", "viewer", "--clusterrole=view", f"--serviceaccount={chat}:viewer",
        namespace=chat,
    )  # fmt: skip
    token = kube.kubectl("create", "token", "viewer", namespace=chat).strip()
    config = json.loads(kube.kubectl("config", "view", "--raw", "--minify", "-o", "json"))
    config["users"] = [{"name": "viewer", "user": {"token": token}}]
    config["contexts"][0]["context"] |= {"user": "viewer", "namespace": chat}
    path = tmp_path / "viewer"
    path.write_text(yaml.safe_dump(config))
    yield path
    kube.kubectl("delete", "serviceaccount/viewer", "rolebinding/viewer", namespace=chat)


def test_a_viewer_sees_all_but_the_load(chat: str, viewer: Path) -> None:
    """Rights as docs/console.md tells them; the namespace is the context's."""

    def told() -> Answer | None:
        answer = quire("status", "chat", "-o", "json", kubeconfig=viewer)
        return answer if answer.returncode == 0 else None

    # A new binding is known to the API server's cache a moment later.
    answer = kube.wait_until(told, 20, "the viewer's rights")
    found = msgspec.json.decode(answer.stdout, type=Document)
    assert [unseen.part for unseen in found.unseen] == ["load"]
    assert "pods/proxy" in found.unseen[0].why
    assert (found.namespace, found.replicas.ready) == (chat, 1)
    assert found.claim is not None
    assert found.claim.phase == "Bound"
    elsewhere = quire("status", "chat", "-n", "kube-system", kubeconfig=viewer)
    assert elsewhere.returncode == 1
    assert elsewhere.stderr.startswith("you may not read inferenceservices.serving.quire.dev")
    assert elsewhere.stderr.count("\n") == 1
