"""One apply, one answer; and nothing left when it is deleted."""

import time
from collections.abc import Callable

import openai
import pytest
import yaml

from quire_cluster import kube, serving
from quire_cluster.faults import Hub

pytestmark = pytest.mark.e2e


def test_a_stream_names_paris(client: openai.OpenAI) -> None:
    pieces = list(serving.stream(client))
    assert len(pieces) > 1, "the answer came in one piece: it was not streamed"
    assert "Paris" in "".join(pieces)


def test_the_model_list_shows_the_served_name(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["chat"]


def test_completions_count_their_tokens(client: openai.OpenAI) -> None:
    done = client.completions.create(
        model="chat", prompt="One, two, three,", max_tokens=5, temperature=0
    )
    assert done.usage is not None
    assert done.usage.completion_tokens == 5
    assert done.choices[0].finish_reason == "length"


def test_status_tells_what_kubectl_shows(chat: str) -> None:
    service = kube.get("inferenceservice", "chat", chat)
    status = service["status"]
    assert status["observedGeneration"] == service["metadata"]["generation"]
    assert status["url"] == f"http://chat.{chat}.svc.cluster.local/v1"
    assert status["replicas"] == status["readyReplicas"] == 1
    assert status["model"]["bytesTotal"] == status["model"]["bytesDone"] > 200_000_000
    assert len(status["model"]["commit"]) == 40
    line = kube.kubectl("get", "qis", "chat", "--no-headers", namespace=chat).split()
    assert line[:5] == ["chat", "True", "Ready", "1", serving.MODEL]


def test_the_scale_subresource_speaks_for_the_pods(chat: str) -> None:
    text = kube.kubectl(
        "get", "inferenceservice", "chat", "--subresource=scale", "-o", "yaml", namespace=chat
    )
    scale = yaml.safe_load(text)
    assert scale["spec"]["replicas"] == scale["status"]["replicas"] == 1
    assert len(kube.items("pods", chat, scale["status"]["selector"])) == 1


def test_pods_run_without_privileges(chat: str) -> None:
    [pod] = kube.items("pods", chat, "serving.quire.dev/service=chat")
    [container] = pod["spec"]["containers"]
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"]["drop"] == ["ALL"]
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod["spec"]["automountServiceAccountToken"] is False


def test_a_second_service_starts_from_the_cache_and_leaves_nothing(
    chat: str, hub: Hub, record_property: Callable[[str, object], None]
) -> None:
    hub.clear_log()
    started = time.monotonic()
    kube.apply(serving.manifest("second"), chat)
    kube.wait_ready(chat, "second")
    with serving.connect(chat, "second") as client:
        first_piece = next(iter(serving.stream(client, model="second")))
    seconds = time.monotonic() - started
    record_property("apply_to_first_token_seconds", f"{seconds:.1f}")
    assert first_piece
    assert hub.bytes_served(".safetensors") == 0, "the model was fetched again"

    kube.kubectl("delete", "inferenceservice", "second", namespace=chat)
    kube.wait_until(lambda: not _left(chat, "second"), 60, "everything of `second` to go")
    claims = kube.items("persistentvolumeclaims", chat)
    assert len(claims) == 1, "the shared claim has another owner"


def test_deleting_the_last_service_leaves_nothing(namespace: str) -> None:
    kube.apply(serving.manifest(), namespace)
    kube.wait_ready(namespace, "chat")
    kube.kubectl("delete", "inferenceservice", "chat", namespace=namespace)
    kube.wait_until(lambda: not _left(namespace, "chat"), 60, "everything of `chat` to go")
    kube.wait_until(
        lambda: not kube.items("persistentvolumeclaims", namespace), 60, "the model's claim to go"
    )


def _left(namespace: str, name: str) -> list[str]:
    kinds = "deployments,replicasets,pods,services,endpointslices,jobs,poddisruptionbudgets"
    return [
        f"{item['kind']}/{item['metadata']['name']}"
        for item in kube.items(kinds, namespace)
        if item["metadata"]["name"].startswith(name)
    ]
