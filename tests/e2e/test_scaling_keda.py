"""KEDA scales by the operator's scaler and by Prometheus, to zero and back, and all four modes take
over from each other."""

import concurrent.futures
import itertools
import time
from collections.abc import Iterator

import pytest

from quire_cluster import gateway, keda, kube, prometheus, scaled, serving
from quire_cluster.prometheus import Prometheus
from quire_cluster.scaled import Scaled

pytestmark = pytest.mark.e2e

DOWN_SECONDS = 10
IDLE_SECONDS = 10
OUTAGE_SECONDS = 120
ZERO_SECONDS = 90
"""KEDA looks each 15 s, and a pod takes 20 s to leave."""
PUSHED: kube.Json = {
    "mode": "keda",
    "minReplicas": 1,
    "maxReplicas": 2,
    "targets": {"queueDepth": 2},
    "scaleDown": {"stabilizationSeconds": DOWN_SECONDS},
}
QUERIED: kube.Json = {**PUSHED, "keda": {"prometheusServer": Prometheus.url}}
# Every ordered pair of modes, once.
CIRCUIT = (
    *("none", "builtin", "none", "hpa", "none", "keda", "builtin"),
    *("hpa", "builtin", "keda", "hpa", "keda", "none"),
)
OBJECTS = {
    "none": [],
    "builtin": [],
    "hpa": ["HorizontalPodAutoscaler/parked"],
    "keda": ["HorizontalPodAutoscaler/keda-hpa-parked", "ScaledObject/parked"],
}
WRITERS = {
    "none": "kubectl",
    "builtin": "quire-scaler",
    "hpa": "kube-controller-manager",
    "keda": "kube-controller-manager",
}


@pytest.fixture(scope="module")
def autoscalers(quire: None) -> Iterator[None]:
    """KEDA, and an operator that answers it."""
    with keda.running(), gateway.installed("keda.externalScaler.enabled=true"):
        yield


@pytest.fixture(scope="module")
def server(autoscalers: None) -> Iterator[Prometheus]:
    with prometheus.running() as server:
        yield server


@pytest.fixture(scope="module")
def namespace(autoscalers: None) -> Iterator[str]:
    with serving.fresh_namespace("keda") as namespace:
        yield namespace


@pytest.fixture(scope="module")
def pushed(namespace: str) -> Scaled:
    """KEDA asks the operator."""
    return _service(namespace, "pushed", PUSHED)


@pytest.fixture(scope="module")
def queried(namespace: str, server: Prometheus) -> Scaled:
    """KEDA asks Prometheus."""
    return _service(namespace, "queried", QUERIED)


def _service(namespace: str, name: str, scaling: kube.Json) -> Scaled:
    kube.apply(scaled.manifest(name, scaling=scaling), namespace)
    kube.wait_ready(namespace, name)
    return Scaled(namespace, name)


def test_prometheus_reads_the_engines_by_their_annotations(
    queried: Scaled, server: Prometheus
) -> None:
    [pod] = queried.pods()
    labels = f'namespace="{queried.namespace}",pod="{pod["metadata"]["name"]}"'
    expression = f"vllm:num_requests_waiting{{{labels}}}"
    [series] = kube.wait_until(lambda: server.query(expression), 30, "the engine's metrics")
    assert series["value"][1] == "0"


def test_while_prometheus_is_gone_nothing_shrinks_and_the_operators_scaler_works(
    queried: Scaled, pushed: Scaled, server: Prometheus
) -> None:
    with scaled.burst(queried, num_callers=12):
        queried.wait_ready(2)
        assert queried.writers() == ["kube-controller-manager"]
        server.stop()
    until = time.monotonic() + OUTAGE_SECONDS
    with scaled.burst(pushed, num_callers=12):
        pushed.wait_ready(2)
    pushed.wait_ready(1, 150)
    while time.monotonic() < until:
        assert queried.replicas() == 2, "it shrank on what nobody knew"
        kube.sleep(2)
    server.start()
    queried.wait_ready(1, 150)


def test_to_zero_and_back(queried: Scaled, pushed: Scaled) -> None:
    services = (queried, pushed)
    for service, scaling in ((queried, QUERIED), (pushed, PUSHED)):
        service.scale_by(**scaling, idleSecondsToZero=IDLE_SECONDS)
    for service in services:
        kube.wait_until(lambda s=service: _is_asleep(s), ZERO_SECONDS, "no replica and no pod")
    with concurrent.futures.ThreadPoolExecutor(len(services)) as pool:
        answers = list(pool.map(_ask, services))
    assert all(answers), "the gateway holds what comes while a service sleeps"
    for service in services:
        service.wait_replicas(0, ZERO_SECONDS)


def _is_asleep(service: Scaled) -> bool:
    return service.replicas() == 0 and service.pods() == []


def _ask(service: Scaled) -> str:
    with serving.connect(service.namespace, service.name) as client:
        patient = client.with_options(timeout=scaled.START_SECONDS)
        return serving.ask(patient, model=service.name)


def test_each_mode_takes_over_from_each_other_and_leaves_nothing(namespace: str) -> None:
    """On a service whose pods find no node: who writes replicas is what is looked at."""
    nowhere = {"spec": {"nodeSelector": {"quire.test/no-such": "node"}}}
    kube.apply(scaled.manifest("parked", replicas=2, podTemplate=nowhere), namespace)
    service = Scaled(namespace, "parked")
    assert len(set(itertools.pairwise(CIRCUIT))) == len(OBJECTS) * (len(OBJECTS) - 1)
    for mode in CIRCUIT:
        service.scale_by(mode=mode, minReplicas=2, maxReplicas=3)
        kube.wait_until(
            lambda m=mode: service.autoscalers() == OBJECTS[m], 30, f"the objects of mode {mode}"
        )
        service.set_replicas(1)
        if mode == "none":
            kube.sleep(5)
            assert service.replicas() == 1, "somebody writes replicas in mode none"
        else:
            service.wait_replicas(2, 30)
        assert service.writers() == [WRITERS[mode]]
