"""`Ready` never lies: each cause shows as its own reason."""

import os

import pytest

from quire_cluster import kube, serving

pytestmark = pytest.mark.e2e

REASON_SECONDS = 60


def test_unschedulable_in_the_schedulers_words(namespace: str) -> None:
    kube.apply(serving.manifest(resources={"gpus": 9, "memory": "3Gi"}), namespace)
    message = kube.wait_reason(namespace, "chat", "Unschedulable", REASON_SECONDS)
    assert "nvidia.com/gpu" in message


def test_a_gpu_pod_without_a_cuda_device_says_so(namespace: str) -> None:
    kube.apply(serving.manifest(resources={"gpus": 1, "memory": "3Gi"}), namespace)
    message = kube.wait_reason(namespace, "chat", "CrashLoop", 2 * REASON_SECONDS)
    assert "CUDA" in message


def test_image_that_is_not_there(namespace: str) -> None:
    image = os.environ["QUIRE_ENGINE_IMAGE"].rpartition(":")[0] + ":absent"
    kube.apply(serving.manifest(engine={"image": image}), namespace)
    assert image in kube.wait_reason(namespace, "chat", "ImagePull", REASON_SECONDS)


def test_crash_shows_the_engines_last_error(namespace: str) -> None:
    """What the plan before it does not find: an address that is not the pod's."""
    engine = {"extraArgs": ["--host", "203.0.113.1"]}
    kube.apply(serving.manifest(engine=engine), namespace)
    message = kube.wait_reason(namespace, "chat", "CrashLoop", 2 * REASON_SECONDS)
    assert "203.0.113.1" in message


def test_oom_names_the_limit(namespace: str) -> None:
    """A limit that the service does not know of: with resources.memory the plan would refuse."""
    limit = {"type": "Container", "default": {"memory": "300Mi"}}
    limit_range = {
        "apiVersion": "v1",
        "kind": "LimitRange",
        "metadata": {"name": "small"},
        "spec": {"limits": [limit]},
    }
    kube.apply(limit_range, namespace)
    kube.apply(serving.manifest(resources={"gpus": 0}), namespace)
    assert "300Mi" in kube.wait_reason(namespace, "chat", "OOMKilled", 2 * REASON_SECONDS)


def test_a_foreign_service_of_our_name_is_left_alone(namespace: str) -> None:
    foreign = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "chat"},
        "spec": {"ports": [{"port": 8080}]},
    }
    kube.apply(foreign, namespace)
    kube.apply(serving.manifest(), namespace)
    message = kube.wait_reason(namespace, "chat", "NameConflict", REASON_SECONDS)
    assert "chat" in message
    assert kube.get("service", "chat", namespace)["spec"]["ports"][0]["port"] == 8080
    kube.kubectl("delete", "service", "chat", namespace=namespace)
    kube.wait_ready(namespace, "chat")
