"""To zero when idle and back on a request: through the service's own address, whoever is away."""

import concurrent.futures
import os
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from quire_cluster import gateway, installation, kube, scaled, serving
from quire_cluster.faults import AuditLog
from quire_cluster.scaled import Scaled

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        os.environ.get("QUIRE_CLUSTER_NETWORK") != "direct",
        reason="a port-forward leads to a Service's pods, and at zero there is none",
    ),
]

IDLE_SECONDS = 10
SLEEPS: kube.Json = {
    "mode": "builtin",
    "minReplicas": 1,
    "maxReplicas": 2,
    "idleSecondsToZero": IDLE_SECONDS,
}
SLEEP_SECONDS = 90
"""Idle, and what the metrics, the Lease's end and the loop's rounds add to it."""
WAKE_SECONDS = scaled.START_SECONDS + 60
OPERATOR_USER = "system:serviceaccount:quire-system:quire"


@pytest.fixture(scope="module")
def service(quire: None) -> Iterator[Scaled]:
    with gateway.installed(), serving.fresh_namespace("zero") as namespace:
        kube.apply(scaled.manifest(scaling=SLEEPS), namespace)
        kube.wait_ready(namespace, "chat")
        yield Scaled(namespace)


@pytest.fixture
def asleep(service: Scaled) -> Scaled:
    _wait_asleep(service)
    return service


def test_idle_goes_to_zero_and_the_address_leads_to_the_gateway_first(
    service: Scaled, audit_log: AuditLog
) -> None:
    _wait_asleep(service)
    assert _slice(service)["ports"][0]["port"] == service.get()["status"]["gatewayPort"]
    assert _led_to(service) == gateway.addresses()
    ready = kube.condition(service.get())
    assert (ready["status"], ready["reason"]) == ("False", "ScaledToZero")
    assert "asleep: the gateway holds the next request" in ready["message"]
    assert kube.condition(service.get(), "RolloutComplete")["status"] == "True"
    [last, *_] = service.decisions()
    assert last["to"] == 0
    mine = [
        write.resource
        for write in audit_log.writes(OPERATOR_USER)
        if write.name.startswith(f"{service.namespace}/chat")
        and write.verb == "patch"
        and write.resource in ("endpointslices", "deployments")
    ]
    assert mine[:2] == ["endpointslices", "deployments"], mine


def test_a_request_wakes_it_and_is_answered(asleep: Scaled) -> None:
    assert _ask(asleep) != ""
    assert asleep.replicas() >= 1
    kube.wait_until(lambda: _slice(asleep) is None, 15, "the gateway to be let go")
    [up, *_] = asleep.decisions()
    assert up["from"] == 0


def test_it_answers_as_before_its_sleep(service: Scaled) -> None:
    before = _ask(service)
    _wait_asleep(service)
    assert _ask(service) == before


def test_a_request_wakes_it_while_the_operator_is_away(asleep: Scaled) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        _scale_operator(0)
        try:
            asked_at = datetime.now(UTC)
            answer = pool.submit(_ask, asleep)
            kube.wait_until(lambda: _renewed(asleep) > asked_at, 15, "the activation Lease")
            kube.sleep(5)
            assert asleep.pods() == [], "nobody was there to wake it"
            assert not answer.done(), "the request is held"
        finally:
            _scale_operator(1)
        assert answer.result(WAKE_SECONDS) != ""
    [owner] = _lease(asleep)["metadata"]["ownerReferences"]
    assert owner["uid"] == asleep.get()["metadata"]["uid"]


def test_the_address_follows_the_gateways_pods(asleep: Scaled) -> None:
    gateway.scale(0)
    kube.wait_until(lambda: _slice(asleep) is None, 10, "no slice to nobody")
    assert asleep.pods() == [], "the gateway's end wakes nobody"
    gateway.scale(2)
    kube.wait_until(lambda: _led_to(asleep) == gateway.addresses(), 10, "both its pods")
    gateway.scale(1)
    kube.wait_until(lambda: _led_to(asleep) == gateway.addresses(), 10, "the one that is left")
    assert _ask(asleep) != ""


def test_a_pause_by_hand_is_lifted_by_no_request(service: Scaled) -> None:
    service.scale_by(mode="none")
    # Not by `kubectl scale`: of a 0 that was written through /scale Kubernetes keeps no writer.
    kube.patch("inferenceservice", "chat", service.namespace, {"spec": {"replicas": 0}})
    kube.wait_until(lambda: service.pods() == [], SLEEP_SECONDS, "no pod")
    assert _slice(service) is None
    assert "gatewayPort" not in service.get()["status"]
    assert "written by" in kube.condition(service.get())["message"]
    service.scale_by(**SLEEPS)
    service.set_replicas(1)
    kube.wait_ready(service.namespace, "chat")


def test_a_deleted_sleeper_leaves_nothing(asleep: Scaled) -> None:
    kube.wait_until(lambda: _lease(asleep) is not None, 5, "a Lease of the tests before")
    kube.kubectl("delete", "inferenceservice", "chat", namespace=asleep.namespace)
    kube.wait_until(lambda: _left(asleep) == [], 60, "nothing of it")


def _wait_asleep(service: Scaled) -> None:
    service.wait_replicas(0, SLEEP_SECONDS)
    kube.wait_until(lambda: service.pods() == [], 60, "its pods to end")
    kube.wait_until(lambda: _slice(service), 5, "the way to the gateway")


def _ask(service: Scaled) -> str:
    """One answer through the service's own address, however long it takes to wake."""
    with serving.connect(service.namespace) as client:
        return serving.ask(client.with_options(timeout=WAKE_SECONDS))


def _slice(service: Scaled) -> kube.Json:
    return kube.get("endpointslice", "chat-gateway", service.namespace)


def _led_to(service: Scaled) -> set[str]:
    found = _slice(service) or {"endpoints": []}
    return {endpoint["addresses"][0] for endpoint in found["endpoints"]}


def _lease(service: Scaled) -> kube.Json:
    return kube.get("lease", "chat-activation", service.namespace)


def _renewed(service: Scaled) -> datetime:
    lease = _lease(service)
    text = lease["spec"]["renewTime"] if lease else "1970-01-01T00:00:00.000000Z"
    return datetime.fromisoformat(text)


def _scale_operator(replicas: int) -> None:
    namespace = installation.NAMESPACE
    kube.kubectl("scale", "deployment", "quire", f"--replicas={replicas}", namespace=namespace)
    kube.wait_until(
        lambda: len(kube.items("pods", namespace, "app.kubernetes.io/name=quire")) == replicas,
        60,
        f"{replicas} operators",
    )


def _left(service: Scaled) -> list[str]:
    """Everything in the namespace that bears our label or is named after the service."""
    kinds = "deployments,services,poddisruptionbudgets,endpointslices,leases,pods,jobs"
    found = kube.items(kinds, service.namespace, "app.kubernetes.io/managed-by=quire")
    pods = service.pods()
    return [f"{item['kind']}/{item['metadata']['name']}" for item in [*found, *pods]]
