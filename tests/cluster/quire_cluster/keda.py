"""KEDA for the cluster: its own manifests, and an image of the binaries that we built of it.

The manifests are those that KEDA's source carries (config/minimal: everything but the admission
webhooks), so that its rights and certificates are the ones of a real installation. They are taken
from the module beforehand: tests run where no module can be fetched.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import yaml

from quire_cluster import kube, node, oci
from quire_cluster.build import GO_FOLDER, Binaries
from quire_cluster.errors import PrerequisiteError
from quire_cluster.layout import Layout
from quire_cluster.shell import run
from quire_cluster.versions import KEDA_TOOL, KUBECTL_TOOL

NAMESPACE = "keda"
API_SERVICE = "v1beta1.external.metrics.k8s.io"
_IMAGE, _MANIFESTS = "QUIRE_KEDA_IMAGE", "QUIRE_KEDA_MANIFESTS"
_ENTRYPOINTS = ("keda", "keda-adapter")  # as the manifests' commands name them
_USER = "65532:65532"  # as in KEDA's images; runAsNonRoot wants an image to say a number
_READY_SECONDS = 180  # the operator restarts itself once its certificates are made


# ---- before the tests ---------------------------------------------------------------------------


def prepare(layout: Layout, binaries: Binaries) -> None:
    """Build KEDA unless it is built, and bring its image to the node."""
    binaries.ensure([KEDA_TOOL, KUBECTL_TOOL])
    path = _manifests_path(binaries)
    if not path.is_file():
        kubectl = str(binaries.program(KUBECTL_TOOL, "kubectl"))
        staged = path.with_suffix(".tmp")
        staged.write_text(run([kubectl, "kustomize", str(_module_folder() / "config/minimal")]))
        staged.replace(path)
    reference = _image(binaries)
    if reference not in node.pulled(layout, reference.rpartition(":")[0]):
        _import(layout, binaries, reference)


def environment(binaries: Binaries) -> Mapping[str, str]:
    """What `running` wants to know; empty before the first `prepare`."""
    path = _manifests_path(binaries)
    return {_IMAGE: _image(binaries), _MANIFESTS: str(path)} if path.is_file() else {}


def _manifests_path(binaries: Binaries) -> Path:
    return binaries.folder(KEDA_TOOL) / "keda.yaml"


def _image(binaries: Binaries) -> str:
    return f"quire.test/keda:{binaries.folder(KEDA_TOOL).name.removeprefix('keda-')}"


def _module_folder() -> Path:
    """Where the Go tool keeps KEDA's source (go.sum's hash is checked when it is fetched)."""
    settings = {"GOFLAGS": "-mod=readonly", "GOWORK": "off"}
    folder = GO_FOLDER / KEDA_TOOL.folder
    run(["go", "mod", "download", KEDA_TOOL.module], environment=settings, folder=folder)
    listed = ["go", "list", "-m", "-f", "{{.Dir}}", KEDA_TOOL.module]
    return Path(run(listed, environment=settings, folder=folder).strip())


def _import(layout: Layout, binaries: Binaries, reference: str) -> None:
    archive = layout.state / "keda.tar"
    programs = zip(_ENTRYPOINTS, KEDA_TOOL.programs, strict=True)
    files = {entry: binaries.program(KEDA_TOOL, name) for entry, name in programs}
    oci.pack(archive, reference, files, ["/keda"], user=_USER)
    run(node.ctr(layout, "images", "import", str(archive)))
    archive.unlink()


# ---- in the tests -------------------------------------------------------------------------------


@contextmanager
def running() -> Iterator[None]:
    """KEDA installed and answering for external metrics; afterwards nothing of it is left.

    Raises PrerequisiteError before `quire_cluster addons`.
    """
    manifests = _adapted_text()
    kube.kubectl("apply", "--server-side", "-f", "-", stdin=manifests)
    try:
        kube.wait_until(_answers, _READY_SECONDS, "KEDA to serve external metrics")
        yield
    finally:
        kube.kubectl("delete", "--ignore-not-found", "-f", "-", stdin=manifests)


def _adapted_text() -> str:
    if _MANIFESTS not in os.environ:
        raise PrerequisiteError(
            "tests with KEDA need it built and on the node; run `make addons`, and these inside "
            "`quire_cluster exec`"
        )
    documents = yaml.safe_load_all(Path(os.environ[_MANIFESTS]).read_text())
    return json.dumps(adapted(documents, os.environ[_IMAGE]))


def adapted(documents: Iterable[kube.Json], reference: str) -> kube.Json:
    """KEDA's own objects as one List, run from our image and looked at every second. Pure."""
    items = [_adapted(document, reference) for document in documents]
    return {"apiVersion": "v1", "kind": "List", "items": items}


def _adapted(document: kube.Json, reference: str) -> kube.Json:
    if document["kind"] != "Deployment":
        return document
    copy = json.loads(json.dumps(document))
    [container] = copy["spec"]["template"]["spec"]["containers"]
    container["image"] = reference
    container["imagePullPolicy"] = "Never"
    container["readinessProbe"] |= {"initialDelaySeconds": 1, "periodSeconds": 1}
    if copy["metadata"]["name"] == "keda-operator":
        container["args"].append("--enable-webhook-patching=false")  # there is no webhook
    return copy


def _answers() -> bool:
    conditions = kube.get("apiservice", API_SERVICE)["status"].get("conditions", [])
    available = any(c["type"] == "Available" and c["status"] == "True" for c in conditions)
    return available and bool(kube.kubectl("get", "--raw=/apis/external.metrics.k8s.io/v1beta1"))
