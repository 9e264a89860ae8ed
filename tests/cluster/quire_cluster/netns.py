"""The provider of our own: a real Kubernetes in a network namespace of this machine.

`up` is level-based: it looks at what runs and starts what does not. What one life of the cluster
writes lies in one folder whose last file, the fingerprint, says that it was brought up whole and
with which configuration; anything else is taken down and started anew.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from quire_cluster import (
    cgroups,
    keda,
    manifests,
    network,
    node,
    pki,
    prerequisites,
    prometheus,
    small_volumes,
)
from quire_cluster.build import Binaries
from quire_cluster.buildah import BuildahPublisher
from quire_cluster.console import say, timed
from quire_cluster.control_plane import Programs
from quire_cluster.errors import ClusterError, CommandError, NotReadyError, NotRunningError
from quire_cluster.images import image_environment
from quire_cluster.layout import Layout
from quire_cluster.locks import exclusive
from quire_cluster.processes import ProcessSpec, ProcessTable, wait_for
from quire_cluster.provider import Image, Status
from quire_cluster.settings import Settings
from quire_cluster.shell import run, succeeds
from quire_cluster.versions import CLIENT_TOOLS, KUBECTL_TOOL, NODE_SIDE_TOOLS

_SOURCES = Path(__file__).resolve().parent
_HUB_MODULE = "quire_cluster.hub"
_READY_SECONDS = 90  # a busy machine takes its time; an idle one needs less than 10
_ALL_TOOLS = (*NODE_SIDE_TOOLS, *CLIENT_TOOLS)


class NetnsCluster:
    """See provider.Provider."""

    name = "netns"

    def __init__(self, settings: Settings) -> None:
        self._layout = Layout(settings.cache)
        self._repo = settings.repo
        self._binaries = Binaries(settings.cache)
        self._programs = Programs(self._layout, self._binaries)
        self._processes = ProcessTable(
            self._layout.run, self._layout.logs, self._layout.state, network.enter()
        )

    # ---- up ------------------------------------------------------------------------------------

    def up(self) -> None:
        self._prepare_machine()
        with self._locked():
            if self._is_whole() and self._is_ready():
                self._start_hub()
                say(f"the cluster is up ({self._summary()})")
                return
            if self._layout.state.exists():
                say("what is there is not whole or of another configuration; starting anew")
                self._tear_down()
            with timed("starting Kubernetes"):
                self._start()
            say(f"the cluster is up ({self._summary()})")

    def _prepare_machine(self) -> None:
        to_build = self._binaries.missing(_ALL_TOOLS)
        machine = prerequisites.Machine.here(self._layout.cache)
        prerequisites.check(machine, needs_go=bool(to_build), needs_disk=bool(to_build))
        prerequisites.install(prerequisites.NODE_PACKAGES)
        if to_build:
            with self._locked():
                self._binaries.ensure(_ALL_TOOLS)

    def _start(self) -> None:
        layout = self._layout
        for folder in (layout.run, layout.logs, layout.volumes, layout.small_volumes):
            folder.mkdir(parents=True, exist_ok=True)
        for folder in (layout.registry, layout.hub):
            folder.mkdir(parents=True, exist_ok=True)
        layout.audit_log.touch()
        self._write_configs()
        pki.create(layout.pki)
        shutil.copy(layout.kubeconfig_of("admin"), layout.kubeconfig)
        network.create()
        cgroups.create()
        for spec in self._programs.stores():
            self._processes.start(spec)
        self._start_hub()
        node.prepare_images(layout, self._programs.node_program(), self._wait)
        self._wait("the API server", self._api_server_answers)
        for spec in self._programs.agents():
            self._processes.start(spec)
        self._kubectl_apply(manifests.initial_objects())
        self._wait("the node", self._node_is_ready)
        self._wait("the default service account", self._default_account_exists)
        patch = json.dumps(manifests.gpu_patch())
        target = ("node", network.NODE_NAME, "--subresource=status")
        self._kubectl("patch", *target, f"--patch={patch}")
        layout.fingerprint.write_text(self._fingerprint())

    def _write_configs(self) -> None:
        for path, text in self._programs.config_files().items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def _start_hub(self) -> None:
        """The hub mirror runs from the working tree: another tree or newer code restarts it."""
        address = ("--host", network.NODE_ADDRESS, "--port", str(network.HUB_PORT))
        spec = ProcessSpec(
            "hub",
            (sys.executable, "-m", _HUB_MODULE, *address, "--root", str(self._layout.hub)),
            {"PYTHONPATH": str(_SOURCES.parent)},
            inputs="".join(path.read_text() for path in sorted(_SOURCES.glob("hub*.py"))),
        )
        if not self._processes.runs_as(spec):
            self._processes.stop(["hub"])
            self._processes.start(spec)
            self._wait("the hub mirror", self._hub_answers)

    # ---- down ----------------------------------------------------------------------------------

    def down(self, *, purge: bool) -> None:
        prerequisites.check(
            prerequisites.Machine.here(self._layout.cache), needs_go=False, needs_disk=False
        )
        with self._locked():
            if self._layout.state.exists() or network.exists():
                with timed("taking the cluster down"):
                    self._tear_down()
            if purge:
                node.remove_stores(self._layout)
        say("the cluster is down")

    def _tear_down(self) -> None:
        """Take away whatever is there, in an order in which nothing restarts anything."""
        layout = self._layout
        layout.fingerprint.unlink(missing_ok=True)
        names = self._processes.names()
        self._processes.stop(name for name in names if name != "containerd")
        self._processes.stop(["containerd"])
        cgroups.destroy()
        node.end_shims(layout)
        node.unmount_all(layout.state)
        node.remove_log_links(layout)
        network.delete()
        shutil.rmtree(layout.state, ignore_errors=True)
        if layout.state.exists():
            raise ClusterError(f"{layout.state} could not be removed; run `down` again")

    # ---- looking -------------------------------------------------------------------------------

    def status(self) -> Status:
        if not self._layout.state.exists():
            return Status(False, "the cluster is down (`up` starts it)")
        details = tuple(self._process_lines())
        if not self._is_whole():
            return Status(False, "the cluster is not whole (`up` mends it)", details)
        if not self._is_ready():
            return Status(False, "the cluster runs and does not answer (`up` mends it)", details)
        return Status(True, f"the cluster is up ({self._summary()})", details)

    def require_running(self) -> None:
        if not self._is_whole():
            raise NotRunningError("the cluster is not up; run `make cluster-up` first")

    def _process_lines(self) -> Iterator[str]:
        for name in [*(spec.name for spec in self._programs.all()), "hub"]:
            pid = self._processes.pid(name)
            state = f"pid {pid}" if pid else "not running"
            yield f"{name}: {state} ({self._layout.logs}/{name}.log)"

    def _is_whole(self) -> bool:
        """Brought up to the end, with today's configuration, and every program alive."""
        fingerprint = self._layout.fingerprint
        return (
            fingerprint.is_file()
            and fingerprint.read_text() == self._fingerprint()
            and network.exists()
            and all(self._processes.pid(spec.name) for spec in self._programs.all())
        )

    def _is_ready(self) -> bool:
        return self._api_server_answers() and self._node_is_ready()

    def _summary(self) -> str:
        return f"{self.name}; node {network.NODE_NAME}, registry {network.REGISTRY}"

    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for spec in self._programs.all():
            digest.update(spec.digest().encode())
        for path, text in sorted(self._programs.config_files().items()):
            digest.update(f"{path}\0{text}\0".encode())
        digest.update(json.dumps(manifests.initial_objects(), sort_keys=True).encode())
        return digest.hexdigest()

    def _hub_answers(self) -> bool:
        target = (network.NODE_ADDRESS, network.HUB_PORT)
        connect = f"import socket; socket.create_connection({target!r}, 1).close()"
        return succeeds([*network.enter(), sys.executable, "-c", connect])

    def _api_server_answers(self) -> bool:
        return self._answers("get", "--raw=/readyz") == "ok"

    def _node_is_ready(self) -> bool:
        path = '{.status.conditions[?(@.type=="Ready")].status}'
        return self._answers("get", "node", network.NODE_NAME, f"-o=jsonpath={path}") == "True"

    def _default_account_exists(self) -> bool:
        return self._answers("get", "serviceaccount", "default", "-o=name") != ""

    def _answers(self, *arguments: str) -> str:
        with suppress(CommandError):
            return self._kubectl(*arguments, "--request-timeout=5s")
        return ""

    def _wait(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait for a part; a program that has ended meanwhile is named with its last lines."""

        def holds() -> bool:
            for name in self._processes.names():
                if self._processes.pid(name) is None:
                    lines = self._processes.last_lines(name)
                    raise NotReadyError(f"{name} ended while {what} was awaited:\n{lines}")
            return condition()

        wait_for(holds, what, seconds=_READY_SECONDS)

    # ---- using ---------------------------------------------------------------------------------

    def publish(self, image: Image) -> str:
        self.require_running()
        prerequisites.install(prerequisites.IMAGE_PACKAGES)
        with exclusive(self._layout.images_lock, "another run builds images; waiting for it"):
            return BuildahPublisher(self._layout, self._repo).publish(image)

    def addons(self) -> None:
        self.require_running()
        prerequisites.install(prometheus.PACKAGES)
        with self._locked():
            keda.prepare(self._layout, self._binaries)
        say("KEDA is on the node, Prometheus on this machine")

    def environment(self) -> Mapping[str, str]:
        bins = os.pathsep.join(str(self._binaries.folder(tool)) for tool in CLIENT_TOOLS)
        return {
            "KUBECONFIG": str(self._layout.kubeconfig),
            "PATH": f"{bins}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "QUIRE_CLUSTER_NETWORK": "direct",
            "QUIRE_REGISTRY": network.REGISTRY,
            "QUIRE_HUB_ADDRESS": f"{network.NODE_ADDRESS}:{network.HUB_PORT}",
            "QUIRE_AUDIT_LOG": str(self._layout.audit_log),
            "QUIRE_PKI": str(self._layout.pki),
            **image_environment(self._layout),
            **keda.environment(self._binaries),
        }

    def wrap(self, command: Sequence[str]) -> list[str]:
        """In the cluster's network, with its name server in place of the host's."""
        resolv_conf = self._layout.configs / "resolv.conf"
        bind = 'mount --bind "$1" /etc/resolv.conf && shift && exec "$@"'
        private = ["unshare", "--mount", "--propagation", "slave"]
        return [*network.enter(), *private, "sh", "-c", bind, "sh", str(resolv_conf), *command]

    def small_volume(self, name: str, size_mib: int, capacity: str) -> Mapping[str, object]:
        path = small_volumes.mount(
            self._layout.small_volumes, name, size_mib, self._containerd_pid()
        )
        return manifests.small_volume(name, str(path), capacity)

    def remove_small_volume(self, name: str) -> None:
        small_volumes.unmount(self._layout.small_volumes, name, self._containerd_pid())

    def _containerd_pid(self) -> int:
        pid = self._processes.pid("containerd")
        if pid is None:
            raise NotRunningError("the cluster is not up; run `make cluster-up` first")
        return pid

    def _kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        kubectl = str(self._binaries.program(KUBECTL_TOOL, "kubectl"))
        config = f"--kubeconfig={self._layout.kubeconfig}"
        return run([*network.enter(), kubectl, config, *arguments], stdin=stdin)

    def _kubectl_apply(self, manifest: manifests.Manifest) -> None:
        self._kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifest))

    def _locked(self) -> AbstractContextManager[None]:
        """One `up`, `down` or build at a time on this machine."""
        return exclusive(self._layout.lock, "another run is at work on the cluster; waiting for it")
