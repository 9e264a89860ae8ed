"""A model that does not fit is refused before a byte of its weights is fetched or a GPU taken."""

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from quire_cluster import faults, kube, serving
from quire_cluster.faults import Hub
from quire_cluster.place import CLEARED_SECONDS, FOUND_SECONDS, POD_SECONDS, Place

pytestmark = pytest.mark.e2e

LABEL = "nvidia.com/gpu.memory"
HEADER_BYTES = 1_000_000
"""More than the headers of the tests' model take, and a small part of its weights."""


@pytest.fixture
def node() -> Iterator[str]:
    """The node's name; it is without the label afterwards."""
    [node] = kube.items("nodes")
    name: str = node["metadata"]["name"]
    yield name
    kube.kubectl("label", "node", name, f"{LABEL}-")


def fits(namespace: str) -> kube.Json:
    return kube.condition(kube.get("inferenceservice", "chat", namespace), "Fits")


def test_too_little_memory_is_refused_and_more_heals_it(
    namespace: str, place: Place, hub: Hub
) -> None:
    hub.clear_log()
    place.apply("chat", resources={"gpus": 0, "memory": "300Mi"}, cache={})
    message = place.found("chat", "DoesNotFit", POD_SECONDS)
    place.told_in_time("chat", "DoesNotFit", hub.first_asked())
    assert "300.0 MiB" in message
    assert fits(namespace)["status"] == "False"
    assert 0 < hub.bytes_served() < HEADER_BYTES, "headers alone"
    for kind in ("persistentvolumeclaims", "deployments", "jobs"):
        assert kube.items(kind, namespace) == []
    place.apply("chat", cache={})
    place.cleared("chat", "DoesNotFit")
    service = kube.wait_ready(namespace, "chat")
    plan, model = service["status"]["plan"], service["status"]["model"]
    assert plan["requiredBytes"] <= plan["memoryBytes"] == 3 * 1024**3
    assert plan["kvBlocks"] > 0
    assert plan["commit"] == model["commit"]
    assert plan["bytesTotal"] == model["bytesTotal"] > plan["weightBytes"] // 2
    assert fits(namespace)["status"] == "True"
    [claim] = kube.items("persistentvolumeclaims", namespace)
    assert claim["spec"]["resources"]["requests"]["storage"] == "1Gi"
    kube.wait_until(
        lambda: not kube.items("pods", namespace, "batch.kubernetes.io/job-name"),
        30,
        "the Jobs' pods to go with them",
    )


def test_an_earlier_revision_serves_on_while_a_context_is_refused(namespace: str) -> None:
    kube.apply(serving.manifest(), namespace)
    kube.wait_ready(namespace, "chat")
    [before] = kube.items("deployments", namespace)
    kube.apply(serving.manifest(resources={"gpus": 0, "memory": "300Mi"}), namespace)
    message = kube.wait_reason(namespace, "chat", "DoesNotFit", POD_SECONDS)
    assert "still serves" in message
    assert [d["metadata"]["uid"] for d in kube.items("deployments", namespace)] == [
        before["metadata"]["uid"]
    ]
    with serving.connect(namespace) as client:
        assert "Paris" in serving.ask(client)
    kube.apply(serving.manifest(), namespace)
    kube.wait_ready(namespace, "chat", 30)


def test_a_nodes_label_refuses_and_a_larger_one_heals_within_15_s(
    namespace: str, node: str
) -> None:
    kube.kubectl("label", "node", node, "--overwrite", f"{LABEL}=200")
    resources = {"gpus": 1, "memory": "3Gi"}
    kube.apply(serving.manifest(resources=resources), namespace)
    kube.wait_reason(namespace, "chat", "DoesNotFit", POD_SECONDS)
    kube.kubectl("label", "node", node, "--overwrite", f"{LABEL}=81559")
    Place(namespace).cleared("chat", "DoesNotFit")
    kube.wait_until(
        lambda: fits(namespace)["status"] == "True", CLEARED_SECONDS, "the larger GPU's answer"
    )
    assert "a GPU has 79.6 GiB" in fits(namespace)["message"]


def test_given_gpu_memory_is_checked_and_unknown_memory_is_not(namespace: str) -> None:
    given = {"gpus": 1, "gpuMemory": "200Mi"}
    kube.apply(serving.manifest(resources=given), namespace)
    message = kube.wait_reason(namespace, "chat", "DoesNotFit", POD_SECONDS)
    assert "MiB" in message
    kube.apply(serving.manifest(resources={"gpus": 1}), namespace)
    kube.wait_until(lambda: fits(namespace)["reason"] == "MemoryUnknown", POD_SECONDS, "no refusal")
    assert LABEL in fits(namespace)["message"]


def test_a_flag_that_the_engine_has_not_is_told_before_a_byte_is_fetched(
    namespace: str, place: Place, hub: Hub
) -> None:
    hub.clear_log()
    place.apply("chat", engine={"extraArgs": ["--no-such-flag"]})
    message = place.found("chat", "PlanFailed", POD_SECONDS)
    assert "--no-such-flag" in message
    place.told_in_time("chat", "PlanFailed", place.ended("chat"))
    assert "BadConfig: " in _screen(namespace)
    assert hub.bytes_served() == 0
    place.apply("chat")
    place.cleared("chat", "PlanFailed")
    kube.wait_ready(namespace, "chat")


def _screen(namespace: str) -> str:
    """What `kubectl quire status` shows of chat."""
    command = ["kubectl", "quire", "status", "chat", "-n", namespace]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_a_plan_that_takes_its_time_says_so_and_one_that_is_killed(
    namespace: str, place: Place, hub: Hub
) -> None:
    hub.faults(path="config.json", stall_after_bytes=0)
    place.apply("chat")
    place.found("chat", "Planning")
    pod = place.job_pod("plan")
    assert f"pod {pod['metadata']['name']} Planning" in " ".join(_screen(namespace).split())
    kube.wait_until(lambda: faults.has_process(pod), FOUND_SECONDS, "its process")
    os.kill(faults.first_process(pod), signal.SIGKILL)
    assert "the plan was killed" in place.found("chat", "Interrupted")
    hub.faults()
    place.cleared("chat", "Interrupted")
    kube.wait_ready(namespace, "chat")
