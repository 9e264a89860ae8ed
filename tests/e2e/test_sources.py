"""Models from a bucket, and by a proxy: which pods see the keys, and what goes which way."""

import base64
import os
from pathlib import Path

import pytest

from quire_cluster import installation, kube, serving
from quire_cluster.faults import Hub, first_process

pytestmark = pytest.mark.e2e

BUCKET_URI = serving.MODEL.replace("hf://", "s3://")
KEY = "quire-e2e"
REASON_SECONDS = 60
READY_SECONDS = 180


def test_a_model_from_a_bucket_and_who_sees_its_keys(namespace: str, hub: Hub) -> None:
    """Wrong keys are told; the right ones reach the Jobs, and no pod that serves."""
    hub.faults(object_keys={KEY: "right-secret"})
    try:
        kube.apply(_secret("wrong-secret", hub), namespace)
        model = {"uri": BUCKET_URI, "credentialsSecret": "bucket"}
        kube.apply(serving.manifest(model=model), namespace)
        message = kube.wait_reason(namespace, "chat", "SourceUnauthorized", REASON_SECONDS)
        assert "SignatureDoesNotMatch" in message
        assert "wrong-secret" not in message
        kube.apply(_secret("right-secret", hub), namespace)
        service = kube.wait_ready(namespace, "chat", READY_SECONDS)
    finally:
        hub.faults()
    assert len(service["status"]["model"]["commit"]) == 40
    with serving.connect(namespace) as client:
        assert "Paris" in serving.ask(client)
    [pod] = [
        pod
        for pod in kube.items("pods", namespace)
        if pod["metadata"]["labels"].get("app.kubernetes.io/name") == "quire-engine"
    ]
    assert "secretKeyRef" not in str(pod["spec"])
    environment = Path(f"/proc/{first_process(pod)}/environ").read_bytes()
    assert b"PATH=" in environment
    assert b"AWS_" not in environment
    assert b"secret" not in environment


def _secret(secret_key: str, hub: Hub) -> kube.Json:
    keys = {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_ENDPOINT_URL": f"http://{hub.address}/s3",
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "bucket"},
        "data": {name: base64.b64encode(value.encode()).decode() for name, value in keys.items()},
    }


def test_listing_and_bytes_go_by_the_charts_proxy(namespace: str, hub: Hub) -> None:
    """The hub has an address that is no one's; the mirror answers as the proxy to it."""
    proxy = f"models.httpProxy=http://{os.environ['QUIRE_HUB_ADDRESS']}"
    with installation.values("hub.endpoint=http://hub.invalid", proxy):
        service = serving.manifest(replicas=0, cache={"size": "1Gi", "prefetch": True})
        kube.apply(service, namespace)
        kube.wait_until(
            lambda: _is_cached(namespace), READY_SECONDS, "the model to be fetched by the proxy"
        )


def _is_cached(namespace: str) -> bool:
    service = kube.get("inferenceservice", "chat", namespace) or {}
    return bool(kube.condition(service, "ModelCached")["status"] == "True")
