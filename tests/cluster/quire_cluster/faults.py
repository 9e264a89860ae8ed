"""Breaking things on purpose: the hub mirror, a file on a volume, a pod's network."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import yaml

from quire_cluster import kube
from quire_cluster.layout import Layout
from quire_cluster.network import POD_CIDR
from quire_cluster.settings import read_settings
from quire_cluster.shell import run


@dataclass(frozen=True)
class Hub:
    """The hub mirror's control routes: faults to come, and the requests that it served."""

    address: str  # host:port, reachable from pods and from here

    def faults(self, **faults: object) -> None:
        """Set these faults, and only these."""
        httpx.put(f"http://{self.address}/_control/faults", json=faults).raise_for_status()

    def clear_log(self) -> None:
        httpx.delete(f"http://{self.address}/_control/log").raise_for_status()

    def log(self) -> list[kube.Json]:
        entries: list[kube.Json] = httpx.get(f"http://{self.address}/_control/log").json()
        return entries

    def first_asked(self) -> datetime:
        """When the first request since `clear_log` came."""
        return datetime.fromtimestamp(self.log()[0]["time"], UTC)

    def bytes_served(self, suffix: str = "") -> int:
        """Body bytes of every GET whose path ends so."""
        return sum(
            entry["bytes"]
            for entry in self.log()
            if entry["method"] == "GET" and entry["path"].endswith(suffix)
        )


def flip_byte(namespace: str, claim: str, path: str, offset: int) -> None:
    """Change one byte of a file on a bound claim."""
    with (volume_folder(namespace, claim) / path).open("r+b") as file:
        file.seek(offset)
        [byte] = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0x01]))


def volume_folder(namespace: str, claim: str) -> Path:
    """Where a bound claim's files lie on this host, which is the node."""
    volume_name = kube.get("persistentvolumeclaim", claim, namespace)["spec"]["volumeName"]
    source = kube.get("persistentvolume", volume_name)["spec"]
    return Path((source.get("hostPath") or source["local"])["path"])


@contextmanager
def cut_off(pod: kube.Json, *clients: str, port: int = 8000) -> Iterator[None]:
    """Drop what these addresses send to the pod's port; probes from the node still pass."""
    with _rules(pod, "filter", "INPUT", clients, port, "DROP"):
        yield


@contextmanager
def refused(address: str) -> Iterator[None]:
    """Whoever asks host:port from a pod is refused the connection; from here it still answers."""
    _, _, port = address.rpartition(":")
    way = ["INPUT", "-p", "tcp", "--dport", port, "-s", POD_CIDR]
    rule = [*way, "-j", "REJECT", "--reject-with", "tcp-reset"]
    run(["iptables", "-I", *rule])
    try:
        yield
    finally:
        run(["iptables", "-D", *rule])


@contextmanager
def impersonate(pod: kube.Json, page: bytes, *clients: str, port: int = 8000) -> Iterator[None]:
    """Let these addresses get `page` for whatever they ask the pod's port; probes from the node
    still reach the engine."""
    program = [*_inside(pod), sys.executable, "-m", "quire_cluster.impostor", str(_IMPOSTOR_PORT)]
    with subprocess.Popen(program, stdin=subprocess.PIPE) as impostor:
        try:
            _give(impostor, page)
            kube.wait_until(lambda: _listens(pod), 20, "the impostor to listen")
            with _rules(pod, "nat", "PREROUTING", clients, port, *_REDIRECTED):
                yield
        finally:
            impostor.kill()


_IMPOSTOR_PORT = 8999
_REDIRECTED = ("REDIRECT", "--to-ports", str(_IMPOSTOR_PORT))


def _give(process: subprocess.Popen[bytes], page: bytes) -> None:
    if process.stdin is not None:
        process.stdin.write(page)
        process.stdin.close()


def _listens(pod: kube.Json) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((pod["status"]["podIP"], _IMPOSTOR_PORT)) == 0


@contextmanager
def _rules(
    pod: kube.Json, table: str, chain: str, clients: Sequence[str], port: int, *target: str
) -> Iterator[None]:
    """One iptables rule in the pod's network for each client's way to the port."""
    iptables = [*_inside(pod), "iptables", "-t", table]
    rules = [
        [chain, "-p", "tcp", "--dport", str(port), "-s", client, "-j", *target]
        for client in clients
    ]
    for rule in rules:
        run([*iptables, "-I", *rule])
    try:
        yield
    finally:
        for rule in rules:
            run([*iptables, "-D", *rule])


def _inside(pod: kube.Json) -> list[str]:
    """Prefix of a command that is to run in the pod's network."""
    [first, *_] = _processes(pod)
    return ["nsenter", f"--net=/proc/{first}/ns/net"]


def kill_engine(pod: kube.Json) -> None:
    """End the engine as the kernel would, at once; the kubelet restarts it."""
    os.kill(first_process(pod), signal.SIGKILL)


@contextmanager
def stopped(process: int) -> Iterator[None]:
    """A process that hangs: it is there, and does nothing."""
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


def kubelet_process() -> int:
    """The id of the test cluster's own kubelet."""
    return int((Layout(read_settings().cache).run / "kubelet.pid").read_text())


def core_process(pod: kube.Json) -> int:
    """The id, on this host, of the engine's core: the first child of its first process."""
    first = first_process(pod)
    return int(Path(f"/proc/{first}/task/{first}/children").read_text().split()[0])


def first_process(pod: kube.Json) -> int:
    """The id, on this host, of the one program that the pod runs."""
    [first] = [process for process in _processes(pod) if _is_first(process)]
    return first


def has_process(pod: kube.Json) -> bool:
    """Whether the pod's one program runs already."""
    try:
        first_process(pod)
    except (LookupError, ValueError):
        return False
    return True


def _is_first(process: int) -> bool:
    """Whether it is its container's first process, and no pause container's."""
    folder = Path(f"/proc/{process}")
    status = (folder / "status").read_text().splitlines()
    [identifiers] = [line for line in status if line.startswith("NSpid:")]
    is_pause = b"node-tools" in (folder / "cmdline").read_bytes()
    return identifiers.split()[-1] == "1" and not is_pause


def _processes(pod: kube.Json) -> list[int]:
    """The ids of this pod's processes, by their cgroup. LookupError when there is none here."""
    uid = pod["metadata"]["uid"]
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            cgroup = (folder / "cgroup").read_text()
        except OSError:  # ended meanwhile
            continue
        if uid in cgroup:
            found.append(int(folder.name))
    if not found:
        raise LookupError(f"no process of pod {uid} runs on this host")
    return found


@dataclass(frozen=True)
class Write:
    """One mutating request that the API server carried out."""

    verb: str
    resource: str
    name: str
    user: str


class AuditLog:
    """The API server's audit log, from where it stood when it was opened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start = os.path.getsize(path)

    def writes(self, user: str) -> list[Write]:
        """What this user has sent as create, update, patch or delete since."""
        with self._path.open() as file:
            file.seek(self._start)
            events = [json.loads(line) for line in file if line.endswith("\n")]
        return [
            _write(event)
            for event in events
            if event["stage"] == "ResponseComplete"
            and event["verb"] in {"create", "update", "patch", "delete", "deletecollection"}
            and event["user"]["username"] == user
        ]


def _write(event: kube.Json) -> Write:
    target = event.get("objectRef", {})
    return Write(
        verb=event["verb"],
        resource="/".join(filter(None, (target.get("resource"), target.get("subresource")))),
        name=f"{target.get('namespace', '')}/{target.get('name', '')}",
        user=event["user"]["username"],
    )


class SmallVolumes:
    """Claims on volumes whose size is enforced; `remove` ends those that were made."""

    def __init__(self) -> None:
        self._names: list[str] = []

    def create(self, namespace: str, claim: str, mebibytes: int) -> None:
        """A claim of `namespace`, bound to a volume of this size."""
        name = f"{namespace}-{claim}"
        volume = yaml.safe_load(_small_volume(name, str(mebibytes), "--capacity", "1Gi"))
        self._names.append(name)
        kube.apply(volume)
        kube.apply(_claim_of(volume, claim), namespace)

    def offer(self, namespace: str, claim: str, mebibytes: int, storage_class: str) -> str:
        """A volume of this size for whoever claims one of that class; its name."""
        name = f"{namespace}-{claim}"
        volume = yaml.safe_load(_small_volume(name, str(mebibytes)))
        volume["spec"]["storageClassName"] = storage_class
        self._names.append(name)
        kube.apply(volume)
        return name

    def resize(self, namespace: str, claim: str, mebibytes: int) -> None:
        """Another size under the same claim; the files stay."""
        _small_volume(f"{namespace}-{claim}", str(mebibytes))

    def remove(self) -> None:
        for name in self._names:
            kube.kubectl("delete", "persistentvolume", name, "--ignore-not-found", "--wait=false")
            _small_volume(name, "--remove")


def _small_volume(*args: str) -> str:
    return run([sys.executable, "-m", "quire_cluster", "small-volume", *args])


def _claim_of(volume: kube.Json, name: str) -> kube.Json:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "accessModes": volume["spec"]["accessModes"],
            "storageClassName": volume["spec"]["storageClassName"],
            "volumeName": volume["metadata"]["name"],
            "resources": {"requests": {"storage": volume["spec"]["capacity"]["storage"]}},
        },
    }
