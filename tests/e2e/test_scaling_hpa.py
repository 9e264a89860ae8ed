"""A plain HorizontalPodAutoscaler on the operator's external metrics: no KEDA, no adapter."""

import os
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from quire_cluster import faults, installation, kube, pki, scaled, serving
from quire_cluster.scaled import Scaled

pytestmark = pytest.mark.e2e

API = "apis/external.metrics.k8s.io/v1beta1"
API_SERVICE = "v1beta1.external.metrics.k8s.io"
DOWN_SECONDS = 10
HOLD_SECONDS = 3 * DOWN_SECONDS
HPA: kube.Json = {
    "mode": "hpa",
    "minReplicas": 1,
    "maxReplicas": 2,
    "targets": {"queueDepth": 2},
    "scaleDown": {"stabilizationSeconds": DOWN_SECONDS},
}


@pytest.fixture(scope="module")
def external_metrics(quire: None) -> Iterator[None]:
    """The operator serves them; afterwards the API is gone again."""
    with installation.values("externalMetrics.enabled=true"):
        kube.wait_until(_is_available, 60, "the API server to reach the operator's metrics")
        yield
    kube.wait_until(lambda: kube.get("apiservice", API_SERVICE) is None, 30, "the API to go")


@pytest.fixture(scope="module")
def service(external_metrics: None) -> Iterator[Scaled]:
    with serving.fresh_namespace("hpa") as namespace:
        kube.apply(scaled.manifest(scaling=HPA), namespace)
        kube.wait_ready(namespace, "chat")
        yield Scaled(namespace)


def test_up_on_a_queue_and_down_without(service: Scaled) -> None:
    kube.wait_until(lambda: _queue_depth(service) == "0", 30, "an idle queue's depth")
    with scaled.burst(service, num_callers=12):
        service.wait_ready(2)
    assert service.writers() == ["kube-controller-manager"]
    service.wait_ready(1, 150)


def test_a_pod_that_gives_no_metrics_is_no_reason_to_shrink(service: Scaled) -> None:
    service.scale_by(**{**HPA, "minReplicas": 2})
    service.wait_ready(2)
    operators = kube.items("pods", installation.NAMESPACE, "app.kubernetes.io/name=quire")
    addresses = [pod["status"]["podIP"] for pod in operators]
    with faults.cut_off(service.pods()[0], *addresses):
        service.wait_condition("False", 15)
        service.scale_by(**HPA)
        kube.sleep(HOLD_SECONDS)
        assert service.replicas() == 2, "it shrank on what it did not know"
    service.wait_ready(1, 150)


def test_strangers_get_no_number(service: Scaled, tmp_path: Path) -> None:
    """Only the API server's own certificate opens the port behind the aggregation layer."""
    folder = Path(os.environ["QUIRE_PKI"])
    stranger = pki.Identity("stranger", "/CN=stranger", "front-proxy-ca", kubeconfig=False)
    outsider = pki.Identity("outsider", "/CN=front-proxy-client", "ca", kubeconfig=False)
    for identity in (stranger, outsider):
        pki.sign(folder, identity, tmp_path)
    assert _ask(service, None) == httpx.codes.UNAUTHORIZED
    assert _ask(service, tmp_path / "stranger") == httpx.codes.FORBIDDEN
    with pytest.raises(httpx.TransportError):  # another authority's: no handshake
        _ask(service, tmp_path / "outsider")
    assert _ask(service, folder / "front-proxy-client") == httpx.codes.OK


def _ask(service: Scaled, certificate: Path | None) -> int:
    """The status that the operator itself answers, asked beside the API server."""
    target = kube.get("apiservice", API_SERVICE)["spec"]["service"]
    address = kube.get("service", target["name"], target["namespace"])["spec"]["clusterIP"]
    url = f"https://{address}:{target.get('port', 443)}/{_path(service)}"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if certificate is not None:
        context.load_cert_chain(f"{certificate}.crt", f"{certificate}.key")
    with httpx.Client(verify=context) as client:
        return client.get(url, headers={"X-Remote-User": "somebody"}).status_code


def _queue_depth(service: Scaled) -> str:
    answer: kube.Json = kube.raw(f"/{_path(service)}")
    [item] = answer["items"]
    return str(item["value"])


def _path(service: Scaled) -> str:
    selector = f"labelSelector=service%3D{service.name}"
    return f"{API}/namespaces/{service.namespace}/quire_queue_depth?{selector}"


def _is_available() -> bool:
    return bool(kube.raw(f"/{API}")["resources"])
