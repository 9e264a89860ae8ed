"""`Ready` never lies: each reason of operator/docs/reasons.md, by a real cause, and its end.

Others are provoked where their matter is tested (test_fetch.py, test_fit.py...); that none is
forgotten, tests/operator/test_reasons.py holds. One namespace, whose model is there already, serves
them all: what is provoked here shows within seconds.
"""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from quire_cluster import faults, installation, kube, serving
from quire_cluster.faults import Hub
from quire_cluster.layout import Layout
from quire_cluster.settings import read_settings
from quire_cluster.tiny_models import write_tiny_model

pytestmark = pytest.mark.e2e

FOUND_SECONDS = 15
"""From a cause that the test itself makes, or that the cluster has just told of."""
CLEARED_SECONDS = 15
POD_SECONDS = 45
"""Where a pod has to come up first, on a busy machine."""
CPU = {"gpus": 0, "memory": "3Gi"}
SMALL = {"gpus": 0}
"""Of pods that never load a model."""


@dataclass(frozen=True)
class Place:
    """A namespace with the model in its cache."""

    namespace: str

    def apply(self, name: str, **spec: object) -> None:
        kube.apply(serving.manifest(name, **spec), self.namespace)

    def found(self, name: str, reason: str, seconds: float = FOUND_SECONDS) -> str:
        """The message of Ready=False once it has this reason."""
        return kube.wait_reason(self.namespace, name, reason, seconds)

    def found_of_pod(self, name: str, reason: str) -> str:
        """The same, of a cause that lies in the service's pod: in time after that was made."""
        message = self.found(name, reason, POD_SECONDS)
        told = min(_time(e["firstTimestamp"]) for e in self.told(name) if e["reason"] == reason)
        made = _time(self.pod(name)["metadata"]["creationTimestamp"])
        assert (told - made).total_seconds() <= FOUND_SECONDS
        return message

    def told(self, name: str) -> list[kube.Json]:
        """What the operator told of a service in Events."""
        events = kube.items("events", self.namespace)
        mine = [e for e in events if e["involvedObject"]["name"] == name]
        return [e for e in mine if e["involvedObject"]["kind"] == "InferenceService"]

    def warned(self, name: str) -> list[str]:
        """The reasons of a service's Warnings, the first one first."""
        told = [event for event in self.told(name) if event["type"] == "Warning"]
        told.sort(key=lambda event: str(event["firstTimestamp"]))
        return [event["reason"] for event in told]

    def pause(self, *names: str) -> None:
        """No pod of these is wanted any more; until Ready says so, and nothing else."""
        for name in names:
            kube.patch("inferenceservice", name, self.namespace, {"spec": {"replicas": 0}})
        for name in names:
            self.found(name, "ScaledToZero", CLEARED_SECONDS)

    def found_beside(self, name: str, reason: str, seconds: float = FOUND_SECONDS) -> str:
        """The message of Ready=True once it has this reason: pods serve all the same."""

        def told() -> str | None:
            now = self.ready(name)
            return str(now["message"]) if (now["status"], now["reason"]) == ("True", reason) else ""

        return kube.wait_until(told, seconds, f"{name} to be Ready=True/{reason}") or ""

    def cleared(self, name: str, reason: str, seconds: float = CLEARED_SECONDS) -> None:
        """Until Ready says something else, of the spec as it is now."""

        def gone() -> bool:
            service = kube.get("inferenceservice", name, self.namespace)
            now = kube.condition(service)
            current = now.get("observedGeneration") == service["metadata"]["generation"]
            return bool(now["reason"] != reason and current)

        kube.wait_until(gone, seconds, f"{name} not to be {reason} any more")

    def ready(self, name: str) -> kube.Json:
        return kube.condition(kube.get("inferenceservice", name, self.namespace) or {})

    def pod(self, name: str) -> kube.Json:
        """The one pod of a service that is not leaving."""
        pods = kube.items("pods", self.namespace, f"serving.quire.dev/service={name}")
        [pod] = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        return pod

    def stop(self, *names: str) -> None:
        """Takes services away; what they leave goes while the next test runs."""
        kube.kubectl(
            "delete", "inferenceservice", *names, "--ignore-not-found", "--wait=false",
            namespace=self.namespace,
        )  # fmt: skip

    @contextmanager
    def service(self, name: str, **spec: object) -> Iterator[str]:
        """A service for a while."""
        self.apply(name, **spec)
        try:
            yield name
        finally:
            self.stop(name)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.fixture(scope="module")
def place(quire: None) -> Iterator[Place]:
    with serving.fresh_namespace("reasons") as namespace:
        place = Place(namespace)
        with place.service("first"):
            kube.wait_ready(namespace, "first")
            yield place


def engine(**fields: object) -> kube.Json:
    """A podTemplate that changes the engine's container."""
    return {"spec": {"containers": [{"name": "engine", **fields}]}}


# ---- the resource itself -------------------------------------------------------------------------


def test_a_foreign_service_of_our_name_is_left_alone(place: Place) -> None:
    foreign = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "foreign"},
        "spec": {"ports": [{"port": 8080}]},
    }
    kube.apply(foreign, place.namespace)
    with place.service("foreign", replicas=0):
        assert "foreign" in place.found("foreign", "NameConflict")
        live = kube.get("service", "foreign", place.namespace)
        assert live["spec"]["ports"][0]["port"] == 8080
        kube.kubectl("delete", "service", "foreign", namespace=place.namespace)
        place.found("foreign", "ScaledToZero")


def test_what_a_predecessor_left_and_does_not_go(place: Place) -> None:
    place.apply("again", replicas=0)
    place.found("again", "ScaledToZero")
    _finalizers(place, ["example.com/hold"])
    try:
        kube.kubectl("delete", "inferenceservice", "again", namespace=place.namespace)
        place.apply("again", replicas=0)
        assert "Service again" in place.found("again", "PredecessorLeaving")
    finally:
        _finalizers(place, None)
    place.found("again", "ScaledToZero")
    place.stop("again")


def _finalizers(place: Place, wanted: list[str] | None) -> None:
    kube.patch("service", "again", place.namespace, {"metadata": {"finalizers": wanted}})


def test_what_no_pod_can_be(place: Place) -> None:
    with place.service("odd", podTemplate={"status": {}}):
        assert "podTemplate.status" in place.found("odd", "InvalidPodTemplate")
        place.apply("odd", podTemplate={"spec": {"restartPolicy": "Never"}})
        assert "restartPolicy" in place.found("odd", "Refused", POD_SECONDS)
        place.apply("odd", replicas=0)
        place.found("odd", "ScaledToZero")


def test_a_right_that_the_operator_lost(place: Place) -> None:
    role = f"{installation.NAMESPACE}-quire"
    rules = json.loads(kube.kubectl("get", "clusterrole", role, "-o", "json"))["rules"]
    kept = [rule for rule in rules if "poddisruptionbudgets" not in rule["resources"]]
    assert len(kept) < len(rules)
    try:
        _set_rules(role, kept)
        place.apply("barred", replicas=0)
        message = place.found("barred", "Forbidden")
        assert "cannot get resource" in message or "cannot patch resource" in message
        assert "poddisruptionbudgets" in message
    finally:
        _set_rules(role, rules)
    place.found("barred", "ScaledToZero", CLEARED_SECONDS)
    place.stop("barred")


def _set_rules(role: str, rules: kube.Json) -> None:
    kube.kubectl("patch", "clusterrole", role, "--type=merge", "-p", json.dumps({"rules": rules}))


# ---- the claim -----------------------------------------------------------------------------------


def test_no_such_storage_class_then_there_is_one(place: Place) -> None:
    name = f"{place.namespace}-class"
    model = {"uri": serving.MODEL, "revision": "main"}  # a claim of its own
    [default] = [
        each for each in kube.items("storageclass") if "provisioner" in each and _is_default(each)
    ]
    with place.service("unbound", model=model, cache={"size": "1Gi", "storageClassName": name}):
        assert name in place.found("unbound", "ClaimUnbound", POD_SECONDS)
        assert place.warned("unbound") == ["ClaimUnbound"], "not the pod that waits for the claim"
        fields = ("apiVersion", "kind", "provisioner", "parameters", "volumeBindingMode")
        found = {field: default[field] for field in fields if field in default}
        kube.apply(found | {"metadata": {"name": name}})
        try:
            place.cleared("unbound", "ClaimUnbound", POD_SECONDS)
            assert "Unschedulable" not in place.warned("unbound")
        finally:
            kube.kubectl("delete", "storageclass", name)


def _is_default(storage_class: kube.Json) -> bool:
    annotations = storage_class["metadata"].get("annotations", {})
    return bool(annotations.get("storageclass.kubernetes.io/is-default-class") == "true")


def test_a_claim_whose_class_cannot_grow(place: Place) -> None:
    place.apply("first", cache={"size": "2Gi"})
    assert "2Gi" in place.found_beside("first", "ClaimCannotGrow")
    place.apply("first")
    place.found_beside("first", "Ready", CLEARED_SECONDS)


# ---- pods that do not come to be -----------------------------------------------------------------


def test_a_quota_and_a_limit_range(place: Place) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "gpus"},
        "spec": {"hard": {"requests.nvidia.com/gpu": "0"}},
    }
    limit = {
        "apiVersion": "v1",
        "kind": "LimitRange",
        "metadata": {"name": "memory"},
        "spec": {"limits": [{"type": "Container", "max": {"memory": "4Gi"}}]},
    }
    for policy in (quota, limit):
        kube.apply(policy, place.namespace)
    greedy = {"resources": {"gpus": 9, "memory": "1Gi"}}
    with place.service("greedy", **greedy), place.service("large", resources=_memory("5Gi")):
        assert "gpus" in place.found("greedy", "QuotaExceeded", POD_SECONDS)
        assert "4Gi" in place.found("large", "PodsRefused", POD_SECONDS)
        for kind, policy in (("resourcequota", "gpus"), ("limitrange", "memory")):
            kube.kubectl("delete", kind, policy, namespace=place.namespace)
        place.cleared("greedy", "QuotaExceeded")
        place.cleared("large", "PodsRefused")


def _memory(limit: str) -> kube.Json:
    return {"gpus": 0, "memory": limit}


def test_pods_that_do_not_come_to_run(place: Place) -> None:
    """Side by side, as most of the time is the kubelet's."""
    [node] = [node["metadata"]["name"] for node in kube.items("nodes")]
    runtime = {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {"name": place.namespace},
        "handler": "nosuch",
    }
    kube.apply(runtime)
    image = os.environ["QUIRE_ENGINE_IMAGE"].rpartition(":")[0] + ":absent"
    names = ("wide", "boxed", "imageless", "needy", "pinned")
    try:
        place.apply("wide", resources={"gpus": 9, "memory": "1Gi"})
        boxed = {"spec": {"runtimeClassName": place.namespace}}
        place.apply("boxed", resources=SMALL, podTemplate=boxed)
        place.apply("imageless", resources=SMALL, podTemplate=engine(image=image))
        place.apply("needy", resources=SMALL, podTemplate=_needy())
        # Nobody asks whether there is room; pods come and fail until the service is mended.
        pinned = {"spec": {"nodeName": node}}
        place.apply("pinned", resources={"gpus": 0, "cpu": "900"}, podTemplate=pinned)
        assert "OutOfcpu" in place.found("pinned", "PodFailed", POD_SECONDS)
        place.pause("pinned")
        assert "nvidia.com/gpu" in place.found_of_pod("wide", "Unschedulable")
        # Its plan's pod has the class too, so that the service's is never made.
        assert "nosuch" in place.found("boxed", "SandboxFailed", POD_SECONDS)
        assert image in place.found_of_pod("imageless", "ImagePull")
        assert "absent" in place.found_of_pod("needy", "MountFailed")
        place.pause("wide", "boxed", "imageless")
        kube.kubectl("create", "configmap", "absent", namespace=place.namespace)
        # The kubelet itself waits longer between its tries.
        assert "absent" in place.found("needy", "PodConfig", 2 * POD_SECONDS)
        kube.kubectl(
            "create", "secret", "generic", "absent", "--from-literal=word=x",
            namespace=place.namespace,
        )  # fmt: skip
        place.cleared("needy", "PodConfig", POD_SECONDS)
    finally:
        place.stop(*names)
        kube.kubectl("delete", "runtimeclass", place.namespace)


def _needy() -> kube.Json:
    """A ConfigMap to mount, and a Secret to read: neither is there."""
    secret = {"name": "WORD", "valueFrom": {"secretKeyRef": {"name": "absent", "key": "word"}}}
    mount = {"name": "extra", "mountPath": "/extra"}
    template = engine(volumeMounts=[mount], env=[secret])
    template["spec"]["volumes"] = [{"name": "extra", "configMap": {"name": "absent"}}]
    return template


# ---- containers that end -------------------------------------------------------------------------


def test_containers_that_end(place: Place) -> None:
    greed = {
        "name": "greedy",
        "image": os.environ["QUIRE_ENGINE_IMAGE"],
        "command": ["python", "-c", "bytearray(1 << 30)"],
        "resources": {"limits": {"memory": "64Mi"}, "requests": {"memory": "64Mi"}},
    }
    try:
        # Of a container beside the engine: what the engine's own limit allows is planned before.
        place.apply("tight", resources=CPU, podTemplate={"spec": {"containers": [greed]}})
        place.apply("deaf", engine={"extraArgs": ["--host", "203.0.113.1"]})
        place.apply("cudaless", resources={"gpus": 1, "memory": "2Gi"})
        assert "64Mi" in place.found("tight", "OOMKilled", 2 * POD_SECONDS)
        assert "203.0.113.1" in place.found("deaf", "CrashLoop", 2 * POD_SECONDS)
        assert "CUDA" in place.found("cudaless", "CrashLoop", 2 * POD_SECONDS)
        warnings = [e["reason"] for e in place.told("cudaless") if e["type"] == "Warning"]
        assert warnings == ["CrashLoop"], "each turn is told once"
        place.pause("tight", "deaf", "cudaless")
    finally:
        place.stop("tight", "deaf", "cudaless")


# ---- engines that run ----------------------------------------------------------------------------


def test_a_probe_that_does_not_find_the_engine_then_no_end_in_sight(place: Place) -> None:
    probe = {"httpGet": {"path": "/nowhere", "port": 8000}}
    sleep = {
        "name": "wait",
        "image": os.environ["QUIRE_ENGINE_IMAGE"],
        "command": ["python", "-c", "import time; time.sleep(600)"],
    }
    with place.service("unprobed", resources=CPU, podTemplate=engine(readinessProbe=probe)):
        assert "404" in place.found("unprobed", "NotReady", POD_SECONDS)
        patient = {"progressDeadlineSeconds": 10}
        template = {"spec": {"initContainers": [sleep]}}
        place.apply("unprobed", resources=CPU, podTemplate=template, rollout=patient)
        place.found("unprobed", "Starting", POD_SECONDS)
        place.found("unprobed", "ProgressDeadlineExceeded", 10 + POD_SECONDS)
        place.pause("unprobed")


def test_an_engine_that_hangs(place: Place) -> None:
    process = faults.first_process(place.pod("first"))
    os.kill(process, signal.SIGSTOP)
    try:
        assert "does not answer" in place.found("first", "EngineHung", 5 + FOUND_SECONDS)
    finally:
        os.kill(process, signal.SIGCONT)
    place.found_beside("first", "Ready", CLEARED_SECONDS)


def test_a_scaler_without_metrics_and_one_that_cannot_read_its_schedule(place: Place) -> None:
    operators = kube.items("pods", "quire-system", "app.kubernetes.io/name=quire")
    addresses = [pod["status"]["podIP"] for pod in operators]
    place.apply("first", scaling={"mode": "builtin"})
    place.found_beside("first", "Ready")
    with faults.cut_off(place.pod("first"), *addresses):
        place.found_beside("first", "NoMetrics")
    place.found_beside("first", "Ready", CLEARED_SECONDS)
    wrong = {"cron": "99 99 * * *", "minReplicas": 1, "timeZone": "UTC"}
    place.apply("first", scaling={"mode": "builtin", "schedules": [wrong]})
    assert "99" in place.found_beside("first", "ScalingFailed")
    place.apply("first")
    place.found_beside("first", "Ready", CLEARED_SECONDS)


# ---- the fetch -----------------------------------------------------------------------------------


def test_bytes_while_they_come(place: Place, hub: Hub) -> None:
    first = kube.get("inferenceservice", "first", place.namespace)
    commit = first["status"]["model"]["commit"]  # by that name, a claim of its own
    hub.faults(bytes_per_second=20_000_000)
    try:
        with place.service("slow", model={"uri": serving.MODEL, "revision": commit}):
            place.found("slow", "Fetching", POD_SECONDS)
            kube.wait_until(
                lambda: " MB at " in place.ready("slow")["message"], POD_SECONDS, "bytes and rate"
            )
            hub.faults()
            place.cleared("slow", "Fetching", POD_SECONDS)
    finally:
        hub.faults()


@pytest.fixture
def hub_root() -> Path:
    """What the mirror serves, where a test may add repositories."""
    if os.environ.get("QUIRE_CLUSTER_NETWORK") != "direct":
        pytest.skip("the mirror of a given cluster serves what it was given")
    return Layout(read_settings().cache).hub


def test_a_repository_without_a_model_then_a_wrong_byte(
    place: Place, hub: Hub, hub_root: Path
) -> None:
    """Fetched ahead, so that no engine has to start."""
    repository = f"quire-tests/{place.namespace}"
    folder = hub_root / repository
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("No model here.")
    fetched = {"model": {"uri": f"hf://{repository}"}, "replicas": 0}
    fetched["cache"] = {"size": "100Mi", "prefetch": True}
    try:
        with place.service("ahead", **fetched):
            place.found("ahead", "UnsupportedModel", POD_SECONDS)
            hub.faults(path=".safetensors", flip_byte_at=5000)
            write_tiny_model(folder)
            place.found("ahead", "Corrupt", POD_SECONDS)
            hub.faults()
            place.found("ahead", "ScaledToZero", POD_SECONDS)
    finally:
        hub.faults()
        shutil.rmtree(folder)


def test_a_volume_that_cannot_be_written_then_can(place: Place) -> None:
    """A folder of the node's, as no storage class makes them."""
    folder = Path(os.environ["QUIRE_AUDIT_LOG"]).parent / f"{place.namespace}-folder"
    folder.mkdir(mode=0o755)
    try:
        _existing_claim(place, "locked", folder)
        cache = {"mode": "existing", "existingClaim": "locked"}
        with place.service("unwritten", cache=cache):
            place.found("unwritten", "FetchFailed", POD_SECONDS)
            folder.chmod(0o777)
            place.cleared("unwritten", "FetchFailed", POD_SECONDS)
    finally:
        kube.kubectl("delete", "persistentvolume", place.namespace, "--wait=false")
        shutil.rmtree(folder, ignore_errors=True)


def _existing_claim(place: Place, name: str, folder: Path) -> None:
    size = {"storage": "1Gi"}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": place.namespace},
        "spec": {
            "storageClassName": place.namespace,
            "accessModes": ["ReadWriteOnce"],
            "capacity": size,
            "hostPath": {"path": str(folder), "type": "Directory"},
        },
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "storageClassName": place.namespace,
            "volumeName": place.namespace,
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": size},
        },
    }
    kube.apply(volume)
    kube.apply(claim, place.namespace)
