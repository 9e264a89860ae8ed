"""`Ready` never lies: each reason of operator/docs/reasons.md, by a real cause, and its end.

Others are provoked where their matter is tested (test_reasons_fetch.py, test_fit.py...); that none
is forgotten, tests/operator/test_reasons.py holds. One namespace, whose model is there already,
serves them all: what is provoked here shows within seconds.
"""

import json
import os
from collections.abc import Iterator
from datetime import datetime

import pytest

from quire_cluster import faults, installation, kube, serving
from quire_cluster.place import CLEARED_SECONDS, FOUND_SECONDS, POD_SECONDS, Place, when

pytestmark = pytest.mark.e2e

CPU = {"gpus": 0, "memory": "3Gi"}
SMALL = {"gpus": 0}
"""Of pods that never load a model."""


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


def test_a_spec_that_an_older_definition_let_in(place: Place) -> None:
    """The definition is without a field's type for a while, as an older one might have been."""
    field = f"{_SPEC_FIELDS}/engine/properties/maxNumSeqs"
    [version] = json.loads(kube.kubectl("get", "crd", installation.CRD, "-o", "json"))["spec"][
        "versions"
    ]
    schema = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    whole = schema["engine"]["properties"]["maxNumSeqs"]
    _set_field(field, {"x-kubernetes-preserve-unknown-fields": True})
    try:
        kube.wait_until(
            lambda: place.apply("older", replicas=0, engine={"maxNumSeqs": "many"}) or True,
            FOUND_SECONDS,
            "the other definition to be in force",
        )
        assert "maxNumSeqs" in place.found("older", "InvalidSpec")
        place.apply("older", replicas=0)
        place.cleared("older", "InvalidSpec")
    finally:
        place.stop("older")
        _set_field(field, whole)


_SPEC_FIELDS = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties"


def _set_field(path: str, schema: kube.Json) -> None:
    change = json.dumps([{"op": "replace", "path": path, "value": schema}])
    kube.kubectl("patch", "crd", installation.CRD, "--type=json", "-p", change)


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
        [claim] = [c for c in _claims(place) if c["spec"].get("storageClassName") == name]
        made = when(claim["metadata"]["creationTimestamp"])
        place.told_in_time("unbound", "ClaimUnbound", made)
        fields = ("apiVersion", "kind", "provisioner", "parameters", "volumeBindingMode")
        found = {field: default[field] for field in fields if field in default}
        kube.apply(found | {"metadata": {"name": name}})
        try:
            # The cluster itself looks for a volume again after a while.
            kube.wait_until(
                lambda: all(c["status"]["phase"] == "Bound" for c in _claims(place)),
                POD_SECONDS,
                "the claim to be bound",
            )
            place.cleared("unbound", "ClaimUnbound")
            assert "Unschedulable" not in place.warned("unbound")
        finally:
            kube.kubectl("delete", "storageclass", name)


def _claims(place: Place) -> list[kube.Json]:
    return kube.items("persistentvolumeclaims", place.namespace)


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
        place.told_in_time("greedy", "QuotaExceeded", place.made("deployments", "greedy"))
        place.told_in_time("large", "PodsRefused", place.made("deployments", "large"))
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
        place.told_in_time("pinned", "PodFailed", place.made("deployments", "pinned"))
        place.pause("pinned")
        assert "nvidia.com/gpu" in place.found_of_pod("wide", "Unschedulable")
        # Its plan's pod has the class too, so that the service's is never made.
        assert "nosuch" in place.found_of_pod("boxed", "SandboxFailed")
        assert image in place.found_of_pod("imageless", "ImagePull")
        assert "absent" in place.found_of_pod("needy", "MountFailed")
        place.pause("wide", "boxed", "imageless")
        kube.kubectl("create", "configmap", "absent", namespace=place.namespace)
        # The kubelet itself waits longer between its tries.
        assert "absent" in place.found("needy", "PodConfig", 2 * POD_SECONDS)
        place.told_in_time("needy", "PodConfig", _first_word(place, "Failed", '"absent" not found'))
        kube.kubectl(
            "create", "secret", "generic", "absent", "--from-literal=word=x",
            namespace=place.namespace,
        )  # fmt: skip
        kube.wait_until(lambda: _began(place.pod("needy")), POD_SECONDS, "the kubelet's next try")
        place.cleared("needy", "PodConfig")
    finally:
        place.stop(*names)
        kube.kubectl("delete", "runtimeclass", place.namespace)


def _first_word(place: Place, reason: str, words: str) -> datetime:
    """When the kubelet first said so of a pod."""
    events = kube.items("events", place.namespace)
    said = [e for e in events if e["reason"] == reason and words in e["message"]]
    return min(when(event["firstTimestamp"]) for event in said)


def _began(pod: kube.Json) -> bool:
    states = [status["state"] for status in pod["status"].get("containerStatuses", [])]
    return any("running" in state for state in states)


def _needy() -> kube.Json:
    """A ConfigMap to mount, and a Secret to read: neither is there."""
    secret = {"name": "WORD", "valueFrom": {"secretKeyRef": {"name": "absent", "key": "word"}}}
    mount = {"name": "extra", "mountPath": "/extra"}
    template = engine(volumeMounts=[mount], env=[secret])
    template["spec"]["volumes"] = [{"name": "extra", "configMap": {"name": "absent"}}]
    return template


def test_a_pod_that_the_kubelet_puts_out(place: Place) -> None:
    """For what a container beside the engine writes to its log: more than it may."""
    if os.environ.get("QUIRE_CLUSTER_NETWORK") != "direct":
        pytest.skip("a given cluster's kubelet may not measure what containers write")
    hog = {
        "name": "hog",
        "image": os.environ["QUIRE_ENGINE_IMAGE"],
        "command": ["python", "-c", _HOG],
        "resources": {"limits": {"ephemeral-storage": "4Mi"}},
    }
    with place.service("hog", resources=CPU, podTemplate={"spec": {"containers": [hog]}}):
        assert "ephemeral" in place.found("hog", "Evicted", 2 * POD_SECONDS)
        place.told_in_time("hog", "Evicted", _first_word(place, "Evicted", "ephemeral"))
        place.pause("hog")


_HOG = """
import os, sys, time
for _ in range(16 << 10):
    sys.stdout.write(os.urandom(512).hex() + os.linesep)
sys.stdout.flush()
time.sleep(600)
"""


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
        for name, reason in (
            ("tight", "OOMKilled"),
            ("deaf", "CrashLoop"),
            ("cudaless", "CrashLoop"),
        ):
            place.told_in_time(name, reason, place.ended(name))
        warnings = [e["reason"] for e in place.told("cudaless") if e["type"] == "Warning"]
        # Beside it may stand what was told of an engine that lost its core and had not ended yet.
        assert warnings.count("CrashLoop") == 1, "each turn is told once"
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
        place.found("unprobed", "NotReady", POD_SECONDS)  # and what the probe got, once it ran
        kube.wait_until(lambda: "404" in place.ready("unprobed")["message"], FOUND_SECONDS, "404")
        patient = {"progressDeadlineSeconds": 10}
        template = {"spec": {"initContainers": [sleep]}}
        place.apply("unprobed", resources=CPU, podTemplate=template, rollout=patient)
        place.found("unprobed", "Starting", POD_SECONDS)
        place.found("unprobed", "ProgressDeadlineExceeded", 10 + FOUND_SECONDS)
        place.pause("unprobed")


def test_an_engine_that_hangs(place: Place) -> None:
    process = faults.first_process(place.pod("first"))
    with faults.stopped(process):
        assert "does not answer" in place.found("first", "EngineHung")
    place.found_beside("first", "Ready", CLEARED_SECONDS)


def test_an_engine_whose_core_hangs_with_a_request(place: Place) -> None:
    """It still answers the kubelet, and is not restarted for a standstill of seconds."""
    pod = place.pod("first")
    with serving.connect(place.namespace, "first") as client:
        answer = serving.stream(client, "Count to 1000.", model="first")
        begin = next(answer)
        with faults.stopped(faults.core_process(pod)):
            assert "no layer has run for" in place.found("first", "EngineHung")
        place.found_beside("first", "Ready", CLEARED_SECONDS)
        assert len([begin, *answer]) > 2, "it was cut before it had ended"
    assert place.pod("first")["metadata"]["uid"] == pod["metadata"]["uid"]
    assert place.pod("first")["status"]["containerStatuses"][0]["restartCount"] == 0


def test_a_node_that_nobody_hears_of(place: Place) -> None:
    """Its kubelet hangs; what runs there runs on, this test and the operator too."""
    if os.environ.get("QUIRE_CLUSTER_NETWORK") != "direct":
        pytest.skip("a given cluster's kubelet is not ours to stop")
    with faults.stopped(faults.kubelet_process()):
        kube.wait_until(_is_node_lost, NODE_SECONDS, "the cluster to miss the node")
        assert "node" in place.found("first", "NodeLost")
    place.found_beside("first", "Ready", CLEARED_SECONDS)


NODE_SECONDS = 90
"""The cluster's node controller waits 50 s for a word of the kubelet's."""


def _is_node_lost() -> bool:
    [node] = kube.items("nodes")
    return any(
        (c["type"], c["status"]) == ("Ready", "Unknown") for c in node["status"]["conditions"]
    )


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
