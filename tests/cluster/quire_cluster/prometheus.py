"""Debian's Prometheus as a process beside the cluster, as tests want it: found, stopped, started.

It listens on the node's address, where pods (KEDA's among them) reach it. Debian builds it without
Kubernetes' discovery, so a thread of ours lists the pods and hands them over by file, with the
labels that `kubernetes_sd_configs` of role pod would give; the relabelling is the usual one.
"""

import json
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from quire_cluster import kube
from quire_cluster.errors import CommandError, NotReadyError, PrerequisiteError
from quire_cluster.network import NODE_ADDRESS

PACKAGES = {"prometheus": "prometheus"}
PORT = 9095
_SCRAPE = "1s"
_DISCOVERY_SECONDS = 2.0
_START_SECONDS = 30
_POD = "__meta_kubernetes_pod"
_ANNOTATION = f"{_POD}_annotation_prometheus_io"


class Prometheus:
    """One server, whose data survives `stop` and `start`."""

    address = f"{NODE_ADDRESS}:{PORT}"
    url = f"http://{address}"

    def __init__(self, folder: Path) -> None:
        if shutil.which("prometheus") is None:
            raise PrerequisiteError("prometheus was not found on PATH; run `make addons`")
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        settings = json.dumps(configuration(folder / "targets.json"), indent=1)
        (folder / "prometheus.yml").write_text(settings)

    def start(self) -> None:
        """Returns once it answers queries."""
        log = self._folder / "prometheus.log"
        with log.open("ab") as sink:
            self._process = subprocess.Popen(self._command(), stdout=sink, stderr=sink)
        deadline = time.monotonic() + _START_SECONDS
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise NotReadyError(f"prometheus does not answer:\n{log.read_text()[-2000:]}")
            time.sleep(0.2)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(_START_SECONDS)
            self._process = None

    def query(self, expression: str) -> list[kube.Json]:
        """An instant query's vector."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression})
        answer.raise_for_status()
        found: list[kube.Json] = answer.json()["data"]["result"]
        return found

    def discover(self) -> None:
        """Tell it the pods of this moment."""
        pods = json.loads(kube.kubectl("get", "pods", "--all-namespaces", "-o", "json"))["items"]
        staged = self._folder / "targets.tmp"
        staged.write_text(json.dumps(targets(pods)))
        staged.replace(self._folder / "targets.json")

    def _command(self) -> list[str]:
        return [
            "prometheus",
            f"--config.file={self._folder}/prometheus.yml",
            f"--storage.tsdb.path={self._folder}/data",
            f"--web.listen-address={self.address}",
        ]

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/-/ready").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False


@contextmanager
def running() -> Iterator[Prometheus]:
    """A server that follows the pods of the cluster; its data goes with it."""
    with tempfile.TemporaryDirectory(prefix="quire-prometheus-") as folder:
        server = Prometheus(Path(folder))
        server.discover()
        server.start()
        ending = threading.Event()
        follower = threading.Thread(target=_follow, args=(server, ending))
        follower.start()
        try:
            yield server
        finally:
            ending.set()
            follower.join()
            server.stop()


def _follow(server: Prometheus, ending: threading.Event) -> None:
    while not ending.wait(_DISCOVERY_SECONDS):
        try:
            server.discover()
        except CommandError:  # the API server is busy: the last list holds until the next one
            continue


def configuration(targets_file: Path) -> kube.Json:
    """Scrape every pod that says prometheus.io/scrape, at the port and path that it says. Pure."""
    return {
        "global": {"scrape_interval": _SCRAPE, "scrape_timeout": _SCRAPE},
        "scrape_configs": [
            {
                "job_name": "pods",
                "file_sd_configs": [{"files": [str(targets_file)]}],
                "relabel_configs": [
                    {
                        "action": "keep",
                        "source_labels": [f"{_ANNOTATION}_scrape"],
                        "regex": "true",
                    },
                    _replace([f"{_ANNOTATION}_path"], "(.+)", "__metrics_path__", "$1"),
                    _replace(
                        [f"{_POD}_ip", f"{_ANNOTATION}_port"], "(.+);(.+)", "__address__", "$1:$2"
                    ),
                    _replace(["__meta_kubernetes_namespace"], "(.*)", "namespace", "$1"),
                    _replace([f"{_POD}_name"], "(.*)", "pod", "$1"),
                    {"action": "labelmap", "regex": f"{_POD}_label_(.+)"},
                ],
            }
        ],
    }


def _replace(labels: list[str], regex: str, target: str, replacement: str) -> kube.Json:
    return {
        "source_labels": labels,
        "regex": regex,
        "target_label": target,
        "replacement": replacement,
    }


def targets(pods: Iterable[kube.Json]) -> kube.Json:
    """What Kubernetes' discovery says of pods that have an address, in file_sd's format. Pure."""
    return [
        {"targets": [pod["status"]["podIP"]], "labels": _labels(pod)}
        for pod in pods
        if pod["status"].get("podIP") and pod["status"]["phase"] in {"Pending", "Running"}
    ]


def _labels(pod: kube.Json) -> dict[str, str]:
    metadata = pod["metadata"]
    mapped = {
        f"{_POD}_{kind}_{_label_name(name)}": value
        for kind in ("label", "annotation")
        for name, value in metadata.get(f"{kind}s", {}).items()
    }
    return {
        "__meta_kubernetes_namespace": metadata["namespace"],
        f"{_POD}_name": metadata["name"],
        f"{_POD}_ip": pod["status"]["podIP"],
        **mapped,
    }


def _label_name(name: str) -> str:
    """Whatever a label's name may not hold becomes an underscore, as Prometheus does it."""
    return "".join(letter if letter.isalnum() else "_" for letter in name)
