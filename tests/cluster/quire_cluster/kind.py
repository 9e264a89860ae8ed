"""The provider for machines with a Docker engine: a kind cluster."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence

from quire_cluster import docker, manifests
from quire_cluster.build import Binaries
from quire_cluster.console import say, timed
from quire_cluster.docker import docker_answers
from quire_cluster.errors import ClusterError, NotRunningError, PrerequisiteError
from quire_cluster.images import image_environment, record
from quire_cluster.layout import Layout
from quire_cluster.provider import Image, Status
from quire_cluster.settings import Settings
from quire_cluster.shell import run, succeeds
from quire_cluster.versions import CLIENT_TOOLS, KIND_NODE_IMAGE

__all__ = ["KindCluster", "docker_answers"]

CLUSTER = "quire"
_NODE = f"{CLUSTER}-control-plane"
_REGISTRY = "quire.test"  # never contacted: images are loaded into the node


class KindCluster:
    """See provider.Provider. Written against kind's documentation; runs where Docker does."""

    name = "kind"

    def __init__(self, settings: Settings) -> None:
        self._layout = Layout(settings.cache)
        self._settings = settings
        self._binaries = Binaries(settings.cache)
        self._kubeconfig = settings.cache / "kind.kubeconfig"

    def up(self) -> None:
        if shutil.which("kind") is None:
            raise PrerequisiteError(
                "a Docker engine answers, and kind was not found on PATH; install kind, or set "
                "QUIRE_CLUSTER=netns for a cluster without Docker"
            )
        self._binaries.ensure(CLIENT_TOOLS)
        if self.status().ready:
            say("the cluster is up (kind)")
            return
        with timed("creating a kind cluster (pulls its node image the first time)"):
            name = ["--name", CLUSTER, "--kubeconfig", str(self._kubeconfig)]
            run(["kind", "delete", "cluster", *name])
            run(["kind", "create", "cluster", *name, "--image", KIND_NODE_IMAGE, "--wait", "180s"])
            patch = json.dumps(manifests.gpu_patch())
            target = ["patch", "node", _NODE, "--subresource=status", f"--patch={patch}"]
            run(["kubectl", *target], environment=self.environment())
        say("the cluster is up (kind)")

    def down(self, *, purge: bool) -> None:
        run(["kind", "delete", "cluster", "--name", CLUSTER])
        if purge:
            self._layout.images_record.unlink(missing_ok=True)
        say("the cluster is down")

    def status(self) -> Status:
        if CLUSTER not in run(["kind", "get", "clusters"]).split():
            return Status(False, "the cluster is down (`up` starts it)")
        kubeconfig = f"--kubeconfig={self._kubeconfig}"
        if not succeeds(["kubectl", kubeconfig, "get", "--raw=/readyz"]):
            return Status(False, "the kind cluster does not answer (`up` makes it anew)")
        return Status(True, "the cluster is up (kind)")

    def require_running(self) -> None:
        if not self.status().ready:
            raise NotRunningError("the cluster is not up; run `make cluster-up` first")

    def publish(self, image: Image) -> str:
        self.require_running()
        reference = docker.build(self._settings.repo, self._layout.cache, image, _REGISTRY)
        run(["kind", "load", "docker-image", "--name", CLUSTER, reference])
        record(self._layout, image, reference)
        return reference

    def addons(self) -> None:
        say("KEDA and Prometheus come with our own cluster only; tests that need them skip here")

    def environment(self) -> Mapping[str, str]:
        bins = os.pathsep.join(str(self._binaries.folder(tool)) for tool in CLIENT_TOOLS)
        address = self._settings.hub_address
        return {
            "KUBECONFIG": str(self._kubeconfig),
            "PATH": f"{bins}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "QUIRE_REGISTRY": _REGISTRY,
            **({"QUIRE_HUB_ADDRESS": address} if address else {}),
            **image_environment(self._layout),
        }

    def wrap(self, command: Sequence[str]) -> list[str]:
        return list(command)

    def small_volume(self, name: str, size_mib: int, capacity: str) -> Mapping[str, object]:
        raise ClusterError("kind has no volumes with enforced size; use QUIRE_CLUSTER=netns")

    def remove_small_volume(self, name: str) -> None:
        raise ClusterError("kind has no volumes with enforced size; use QUIRE_CLUSTER=netns")
