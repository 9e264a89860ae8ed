"""One claim a model, whoever asks for it: fetched once, kept while it is used, pinned."""

import time
from pathlib import Path

import pytest

from quire_cluster import kube, serving, sparse_models
from quire_cluster.faults import Hub
from quire_cluster.model import GGUF_NAME
from quire_cluster.tiny_models import TinyModel

pytestmark = pytest.mark.e2e

QUIET_SECONDS = 10


def test_two_services_at_once_are_one_download(namespace: str, hub: Hub) -> None:
    hub.clear_log()
    kube.apply(_yaml(serving.manifest("first"), serving.manifest("second")), namespace)
    service = kube.wait_ready(namespace, "first")
    kube.wait_ready(namespace, "second")
    total = service["status"]["model"]["bytesTotal"]
    assert total <= hub.bytes_served() < 1.05 * total  # listings and plans are kilobytes
    [claim] = kube.items("persistentvolumeclaims", namespace)
    owners = {owner["name"] for owner in claim["metadata"]["ownerReferences"]}
    assert owners == {"first", "second"}
    assert _writers(namespace) == []

    kube.kubectl("delete", "inferenceservice", "first", namespace=namespace)
    kube.wait_until(lambda: _owners(namespace) == {"second"}, 30, "`first` to leave the claim")
    with serving.connect(namespace, "second") as client:
        assert "Paris" in serving.ask(client, model="second")
    kube.kubectl("delete", "inferenceservice", "second", namespace=namespace)
    kube.wait_until(lambda: not _claims(namespace), 60, "the claim to go with its last owner")


def _yaml(*manifests: kube.Json) -> kube.Json:
    return {"apiVersion": "v1", "kind": "List", "items": list(manifests)}


def _claims(namespace: str) -> list[str]:
    return [c["metadata"]["name"] for c in kube.items("persistentvolumeclaims", namespace)]


def _owners(namespace: str) -> set[str]:
    [claim] = kube.items("persistentvolumeclaims", namespace)
    return {owner["name"] for owner in claim["metadata"]["ownerReferences"]}


def _writers(namespace: str) -> list[kube.Json]:
    """The Leases of claims that somebody may write."""
    leases = kube.items("leases", namespace)
    writers = [lease for lease in leases if lease["metadata"]["name"].endswith("-writer")]
    return [lease for lease in writers if lease["spec"].get("holderIdentity")]


def test_two_models_on_one_claim_are_fetched_one_after_the_other(namespace: str, hub: Hub) -> None:
    kube.apply(_disk(), namespace)
    cache = {"mode": "existing", "existingClaim": "disk", "prefetch": True}
    hub.faults(bytes_per_second=25_000_000)
    try:
        kube.apply(serving.manifest("first", cache=cache, replicas=0), namespace)
        kube.wait_until(lambda: _writers(namespace), 30, "the writer's Lease")
        [lease] = _writers(namespace)
        assert lease["metadata"]["name"] == "disk-writer"
        gguf = {"uri": f"{serving.MODEL}-GGUF/{GGUF_NAME}"}
        kube.apply(serving.manifest("second", model=gguf, cache=cache, replicas=0), namespace)
        words = f"waiting for fetch {lease['spec']['holderIdentity']} of claim disk to end"
        kube.wait_until(lambda: words in _cached(namespace, "second"), 30, words)
        assert len(kube.items("jobs", namespace, "app.kubernetes.io/component=fetch")) == 1
    finally:
        hub.faults()
    kube.wait_condition(namespace, "first", "ModelCached", "Cached", 60)
    kube.wait_condition(namespace, "second", "ModelCached", "Cached", 60)
    assert _writers(namespace) == []


def _cached(namespace: str, name: str) -> str:
    service = kube.get("inferenceservice", name, namespace)
    message: str = kube.condition(service, "ModelCached")["message"]
    return message


def _disk() -> kube.Json:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "disk"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }


@pytest.fixture
def small_model(hub_root: Path) -> str:
    """A repository of megabytes with a second revision, `moved`."""
    sparse_models.prepare(hub_root, "megabytes@moved", TinyModel(num_layers=3), num_shards=1)
    return sparse_models.prepare(hub_root, "megabytes", TinyModel(), num_shards=1)


def test_a_prefetched_model_stays_at_its_commit_until_the_spec_moves(
    namespace: str, hub: Hub, small_model: str
) -> None:
    cache = {"size": "100Mi", "prefetch": True}
    model = {"uri": f"hf://{small_model}"}
    kube.apply(serving.manifest(model=model, cache=cache, replicas=0), namespace)
    kube.wait_condition(namespace, "chat", "ModelCached", "Cached", 60)
    assert kube.items("pods", namespace, "serving.quire.dev/service=chat") == []
    before, [claim] = _commit(namespace), _claims(namespace)
    hub.faults(main={small_model: "moved"})
    try:
        time.sleep(QUIET_SECONDS)
        assert (_commit(namespace), _claims(namespace)) == (before, [claim])
        model = {**model, "revision": "moved"}
        kube.apply(serving.manifest(model=model, cache=cache, replicas=0), namespace)
        kube.wait_until(lambda: _commit(namespace) not in ("", before), 60, "the other commit")
        kube.wait_until(lambda: claim not in _claims(namespace), 30, "the first claim to go")
    finally:
        hub.faults()


def _commit(namespace: str) -> str:
    service = kube.get("inferenceservice", "chat", namespace)
    commit: str = service["status"].get("model", {}).get("commit", "")
    return commit
