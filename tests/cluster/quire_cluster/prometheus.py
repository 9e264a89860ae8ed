"""Debian's Prometheus as a process beside the cluster, as tests want it: found, stopped, started.

It finds pods by their annotations, as most installations do, and listens on the node's address,
where pods (KEDA's among them) reach it.
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from quire_cluster import kube
from quire_cluster.errors import NotReadyError, PrerequisiteError
from quire_cluster.network import NODE_ADDRESS

PACKAGES = {"prometheus": "prometheus"}
PORT = 9095
SCRAPE_SECONDS = 1
_POD = "__meta_kubernetes_pod"
_ANNOTATION = f"{_POD}_annotation_prometheus_io"


class Prometheus:
    """One server, whose data survives `stop` and `start`."""

    address = f"{NODE_ADDRESS}:{PORT}"
    url = f"http://{address}"

    def __init__(self, folder: Path, kubeconfig: str) -> None:
        if shutil.which("prometheus") is None:
            raise PrerequisiteError("prometheus was not found on PATH; run `make addons`")
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "prometheus.yml").write_text(json.dumps(configuration(kubeconfig), indent=1))

    def start(self) -> None:
        """Returns once it answers queries."""
        with (self._folder / "prometheus.log").open("ab") as log:
            self._process = subprocess.Popen(self._command(), stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = (self._folder / "prometheus.log").read_text()[-2000:]
                raise NotReadyError(f"prometheus does not answer:\n{tail}")
            time.sleep(0.2)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None

    def query(self, expression: str) -> list[kube.Json]:
        """An instant query's vector."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression})
        answer.raise_for_status()
        found: list[kube.Json] = answer.json()["data"]["result"]
        return found

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
    """A server over the cluster that KUBECONFIG names; its data goes with it."""
    with tempfile.TemporaryDirectory(prefix="quire-prometheus-") as folder:
        server = Prometheus(Path(folder), os.environ["KUBECONFIG"])
        server.start()
        try:
            yield server
        finally:
            server.stop()


def configuration(kubeconfig: str) -> kube.Json:
    """Scrape every pod that says prometheus.io/scrape, at the port and path that it says. Pure."""
    return {
        "global": {
            "scrape_interval": f"{SCRAPE_SECONDS}s",
            "scrape_timeout": f"{SCRAPE_SECONDS}s",
        },
        "scrape_configs": [
            {
                "job_name": "pods",
                "kubernetes_sd_configs": [{"role": "pod", "kubeconfig_file": kubeconfig}],
                "relabel_configs": [
                    _keep(f"{_ANNOTATION}_scrape", "true"),
                    _replace([f"{_ANNOTATION}_path"], "(.+)", "__metrics_path__", "$1"),
                    _replace(
                        [f"{_POD}_ip", f"{_ANNOTATION}_port"], "(.+);(.+)", "__address__", "$1:$2"
                    ),
                    _replace(["__meta_kubernetes_namespace"], "(.*)", "namespace", "$1"),
                    _replace([f"{_POD}_name"], "(.*)", "pod", "$1"),
                    # One target a pod, though discovery makes one for each of its ports.
                    _keep(f"{_POD}_container_port_name", "http"),
                    {"action": "labelmap", "regex": f"{_POD}_label_(serving_quire_dev_.+)"},
                ],
            }
        ],
    }


def _keep(label: str, regex: str) -> kube.Json:
    return {"action": "keep", "source_labels": [label], "regex": regex}


def _replace(labels: list[str], regex: str, target: str, replacement: str) -> kube.Json:
    return {
        "source_labels": labels,
        "regex": regex,
        "target_label": target,
        "replacement": replacement,
    }
