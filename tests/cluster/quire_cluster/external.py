"""The provider for a cluster that somebody else runs: it is used, never started or ended."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from quire_cluster import docker
from quire_cluster.build import Binaries
from quire_cluster.console import say, timed
from quire_cluster.errors import ClusterError, NotRunningError, PrerequisiteError
from quire_cluster.images import image_environment, record
from quire_cluster.layout import Layout
from quire_cluster.provider import Image, Status
from quire_cluster.settings import Settings
from quire_cluster.shell import run, succeeds
from quire_cluster.versions import CLIENT_TOOLS


class ExternalCluster:
    """See provider.Provider."""

    name = "kubeconfig"

    def __init__(self, settings: Settings) -> None:
        if settings.kubeconfig is None:
            raise PrerequisiteError("this provider needs QUIRE_KUBECONFIG to name a file")
        self._settings = settings
        self._kubeconfig: Path = settings.kubeconfig
        self._layout = Layout(settings.cache)
        self._binaries = Binaries(settings.cache)

    def up(self) -> None:
        self._binaries.ensure(CLIENT_TOOLS)
        self.require_running()
        say(self.status().summary)

    def down(self, *, purge: bool) -> None:
        say(f"the cluster of {self._kubeconfig} is not ours to end; nothing was changed")

    def status(self) -> Status:
        kubeconfig = f"--kubeconfig={self._kubeconfig}"
        if succeeds([self._kubectl(), kubeconfig, "get", "--raw=/readyz"]):
            return Status(True, f"the cluster of {self._kubeconfig} answers")
        return Status(False, f"the cluster of {self._kubeconfig} does not answer")

    def require_running(self) -> None:
        if not self.status().ready:
            raise NotRunningError(
                f"the cluster of {self._kubeconfig} does not answer /readyz; start it, or unset "
                "QUIRE_KUBECONFIG for one of our own"
            )

    def publish(self, image: Image) -> str:
        """Raises PrerequisiteError without a registry or a Docker engine."""
        registry = self._settings.registry
        if registry is None:
            raise PrerequisiteError(
                "images for a given cluster go through a registry that it pulls from; set "
                "QUIRE_REGISTRY to one that you may push to (host[:port]/path)"
            )
        if not docker.docker_answers():
            raise PrerequisiteError("images for a given cluster need a Docker engine; start it")
        reference = docker.build(self._settings.repo, self._layout.cache, image, registry)
        with timed(f"pushing {reference}"):
            run(["docker", "push", reference])
        record(self._layout, image, reference)
        return reference

    def addons(self) -> None:
        say("KEDA and Prometheus come with our own cluster only; tests that need them skip here")

    def environment(self) -> Mapping[str, str]:
        bins = os.pathsep.join(str(self._binaries.folder(tool)) for tool in CLIENT_TOOLS)
        optional = {
            "QUIRE_REGISTRY": self._settings.registry,
            "QUIRE_HUB_ADDRESS": self._settings.hub_address,
        }
        return {
            "KUBECONFIG": str(self._kubeconfig),
            "PATH": f"{bins}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            **{key: value for key, value in optional.items() if value},
            **image_environment(self._layout),
        }

    def wrap(self, command: Sequence[str]) -> list[str]:
        return list(command)

    def small_volume(self, name: str, size_mib: int, capacity: str) -> Mapping[str, object]:
        raise ClusterError("volumes with enforced size exist on our own cluster only")

    def remove_small_volume(self, name: str) -> None:
        raise ClusterError("volumes with enforced size exist on our own cluster only")

    def _kubectl(self) -> str:
        folder = self._binaries.folder(CLIENT_TOOLS[0])
        return str(folder / "kubectl") if folder.is_dir() else "kubectl"
