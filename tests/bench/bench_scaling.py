"""A round of the scaling loop over 1,000 services of three pods each, and with one that hangs.

    make bench-scaling   (in `make shell`: python tests/bench/bench_scaling.py [--services 1000])

The operator is the chart's, in its pod, and leads. The cluster's nodes and pods are kwok's; behind
their addresses (192.0.2.128 to .250, of a documentation range, which never leave this machine)
one process answers with the engine's own page. Rounds are read from the operator's own metrics.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from processor import processor
from prometheus_client.parser import text_string_to_metric_families

from quire_cluster import faults, installation, kube, serving
from quire_cluster.build import Binaries
from quire_cluster.errors import CommandError
from quire_cluster.settings import read_settings
from quire_cluster.shell import run
from quire_cluster.versions import KWOK_TOOL

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PODS = "192.0.2.128/25"
PORT = 8000
NUM_NODES = 4
NUM_REPLICAS = 3
HANGING = "hanging"
READY_SECONDS = 900
SETTLE_SECONDS = 30
INTERVAL_SECONDS = 5
LOOK_SECONDS = 4.3
"""Seldom, as the metrics of 1,000 services are an effort; and in no step with the rounds."""


# ---- the simulated cluster ----------------------------------------------------------------------


@contextmanager
def simulated() -> Iterator[Path]:
    """kwok and its nodes, the pods' address range, and who answers there. Gives the file that lets
    one service hang while it exists."""
    with tempfile.TemporaryDirectory(prefix="quire-bench-") as folder:
        hang = Path(folder) / "hang"
        answers = [sys.executable, str(HERE / "scaling_pods.py"), str(PORT), "--hang-while"]
        run(["ip", "route", "replace", "local", PODS, "dev", "lo"])
        with _process([*answers, str(hang)], folder), _process(_kwok(), folder):
            kube.apply(_list([_node(n) for n in range(NUM_NODES)]))
            try:
                yield hang
            finally:
                nodes = [f"bench-{n}" for n in range(NUM_NODES)]
                kube.kubectl("delete", "node", *nodes, "--ignore-not-found")
                run(["ip", "route", "del", "local", PODS, "dev", "lo"])


@contextmanager
def _process(command: list[str], folder: str) -> Iterator[None]:
    with (Path(folder) / f"{Path(command[0]).name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _kwok() -> list[str]:
    program = Binaries(read_settings().cache).program(KWOK_TOOL, "kwok")
    return [
        str(program),
        f"--kubeconfig={os.environ['KUBECONFIG']}",
        f"--config={HERE / 'scaling_stages.yaml'}",
        "--manage-nodes-with-label-selector=quire.test/bench=node",
        "--node-lease-duration-seconds=40",
    ]


def _node(n: int) -> kube.Json:
    """Tainted, so that only the simulated pods come here."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": f"bench-{n}", "labels": {"quire.test/bench": "node"}},
        "spec": {"taints": [{"key": "quire.test/bench", "effect": "NoSchedule"}]},
    }


def _service(name: str) -> kube.Json:
    """Without a cache, as a simulated Job fetches nothing; its pods land on simulated nodes."""
    taint = {"key": "quire.test/bench", "operator": "Exists"}
    pod = {"nodeSelector": {"quire.test/bench": "node"}, "tolerations": [taint]}
    return serving.manifest(
        name,
        replicas=NUM_REPLICAS,
        cache={"mode": "none", "size": "1Gi"},
        resources={"gpus": 0},
        podTemplate={"spec": pod},
        scaling={"mode": "builtin", "minReplicas": 1, "maxReplicas": NUM_REPLICAS,
                 "targets": {"queueDepth": 4, "ttftSeconds": 1},
                 "scaleDown": {"stabilizationSeconds": 3600}},
    )  # fmt: skip


def _address(service: kube.Json) -> kube.Json:
    """The Service of an InferenceService, made before the operator makes it, without a cluster
    address: the test cluster has 254 of them. The operator finds it as its own and completes it."""
    metadata = service["metadata"]
    owner = {
        "apiVersion": service["apiVersion"],
        "kind": service["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    labels = {
        "app.kubernetes.io/managed-by": "quire",
        "app.kubernetes.io/name": "quire-engine",
        "serving.quire.dev/service": metadata["name"],
    }
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": metadata["name"], "ownerReferences": [owner], "labels": labels},
        "spec": {"clusterIP": "None", "ipFamilyPolicy": "SingleStack"},
    }


def _list(items: list[kube.Json]) -> kube.Json:
    return {"apiVersion": "v1", "kind": "List", "items": items}


def _create(items: list[kube.Json], namespace: str) -> None:
    text = json.dumps(_list(items))
    kube.kubectl("create", "-f", "-", namespace=namespace, stdin=text)


# ---- measuring ----------------------------------------------------------------------------------


@contextmanager
def measured(num_services: int, seconds: float) -> Iterator[kube.Json]:
    """Sets up, measures twice (all pods answer; one service hangs) and gives the figures; takes
    everything away, which takes as long as all before it."""
    installation.upgrade("replicaCount=0", f"scaling.scrapeIntervalSeconds={INTERVAL_SECONDS}")
    with simulated() as hang, serving.fresh_namespace("bench") as namespace:
        _set_up(num_services, namespace)
        time.sleep(SETTLE_SECONDS)
        answering = _phase(seconds)
        hang.touch()
        time.sleep(SETTLE_SECONDS)
        hanging = _phase(seconds)
        condition = kube.condition(kube.get("inferenceservice", HANGING, namespace), "Scaling")
        hanging["the hanging service says"] = f"{condition['status']}/{condition['reason']}"
        yield {"all pods answer": answering, "one service hangs": hanging}
        _delete_services(namespace)


def _set_up(num_services: int, namespace: str) -> None:
    """All services with all their pods ready and read by the operator."""
    began = time.monotonic()
    names = [*(f"bench-{n}" for n in range(num_services - 1)), HANGING]
    _create([_service(name) for name in names], namespace)
    _create([_address(s) for s in kube.items("inferenceservices", namespace)], namespace)
    print(f"{num_services} services after {time.monotonic() - began:.0f} s", flush=True)
    installation.upgrade(f"scaling.scrapeIntervalSeconds={INTERVAL_SECONDS}")
    kube.wait_until(
        lambda: _num_read() >= num_services,
        READY_SECONDS,
        "the pods of all services to be read",
    )
    # Or the measured rounds share the machine with the Jobs' deletion.
    kube.wait_until(
        lambda: not kube.items("jobs", namespace), READY_SECONDS, "the memory plans to be over"
    )
    print(f"all pods are read after {time.monotonic() - began:.0f} s", flush=True)


def _delete_services(namespace: str) -> None:
    """All by one request, as singly it takes minutes; it outlives the time of its answer."""
    services = f"/apis/serving.quire.dev/v1alpha1/namespaces/{namespace}/inferenceservices"
    try:
        kube.kubectl("delete", f"--raw={services}")
    except CommandError as error:
        if "may still be processing" not in str(error):
            raise
    kube.wait_until(
        lambda: not kube.items("inferenceservices", namespace), READY_SECONDS, "no service"
    )


def _phase(seconds: float) -> kube.Json:
    """The rounds of this time, and how old each service's last complete reading became."""
    before, began = _scrape(), time.monotonic()
    cpu_before = _cpu_seconds()
    ages: list[float] = []
    while time.monotonic() - began < seconds:
        time.sleep(LOOK_SECONDS)
        ages += _ages(_scrape())
    took = time.monotonic() - began
    after = _scrape()
    rounds = (
        after["quire_scaling_round_seconds_count"] - before["quire_scaling_round_seconds_count"]
    )
    total = after["quire_scaling_round_seconds_sum"] - before["quire_scaling_round_seconds_sum"]
    found = {
        "rounds": int(rounds),
        "mean round seconds": round(total / rounds, 2),
        "rounds over 5 s": int(rounds - _within(after, 5) + _within(before, 5)),
        "oldest reading of another service, seconds": round(max(ages), 2),
        "median age of a reading, seconds": round(statistics.median(ages), 2),
        "operator CPU cores": round((_cpu_seconds() - cpu_before) / took, 2),
        "operator memory MiB": round(_memory_mib()),
        "pods read a round": round(
            (after["quire_scrapes_total:ok"] - before["quire_scrapes_total:ok"]) / rounds
        ),
    }
    print(found, flush=True)
    return found


def _within(samples: dict[str, float], bound: float) -> float:
    return samples[f"quire_scaling_round_seconds_bucket:{float(bound)}"]


def _scrape() -> dict[str, float]:
    """The operator's metrics: name → value, and name:le, name:result and name:service → value."""
    samples: dict[str, float] = {}
    text = httpx.get(f"http://{_operator()['status']['podIP']}:9090/metrics", timeout=30).text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = sample.labels
            which = labels.get("le") or labels.get("result") or labels.get("service")
            samples[f"{sample.name}:{which}" if which else sample.name] = sample.value
    return samples


def _ages(samples: dict[str, float]) -> list[float]:
    """Seconds since each service that does not hang was read whole."""
    start = "quire_scrape_age_seconds:"
    return [
        value
        for name, value in samples.items()
        if name.startswith(start) and name != start + HANGING
    ]


def _num_read() -> int:
    """Services whose three pods are ready and have all been read."""
    samples = _scrape()
    ready = [v for name, v in samples.items() if name.startswith("quire_ready_replicas:")]
    return min(len(_ages(samples)) + 1, sum(value == NUM_REPLICAS for value in ready))


def _operator() -> kube.Json:
    [pod] = kube.items("pods", installation.NAMESPACE, "app.kubernetes.io/name=quire")
    return pod


def _process_id() -> int:
    return faults.first_process(_operator())


def _cpu_seconds() -> float:
    fields = Path(f"/proc/{_process_id()}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_mib() -> float:
    pages = int(Path(f"/proc/{_process_id()}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def table(report: kube.Json) -> str:
    """The report as Markdown."""
    phases = report["phases"]
    rows = list(dict.fromkeys(row for phase in phases.values() for row in phase))
    lines = [
        f"{report['processor']}, {report['num_cpus']} cores, which the API server, kwok and the "
        f"{report['num_services'] * NUM_REPLICAS} simulated pods' answers share with the operator; "
        f"a round each {INTERVAL_SECONDS} s, its starts spread over half of that.",
        "",
        f"| {report['num_services']} services of {NUM_REPLICAS} pods | {' | '.join(phases)} |",
        "| --- |" + " --- |" * len(phases),
    ]
    for row in rows:
        cells = (str(phase.get(row, "")) for phase in phases.values())
        lines.append(f"| {row} | {' | '.join(cells)} |")
    lines += [
        "",
        "A round lasts as long as its slowest service: one that hangs, until its deadline.",
    ]
    return "\n".join([*lines, "", f"load average before and after: {report['load']}"])


def main() -> None:
    """Measure, print, and write the report as JSON and as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60, help="of each of the two phases")
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling.json")
    options = parser.parse_args()
    load = [os.getloadavg()[0]]
    with measured(options.services, options.seconds) as phases:
        load.append(os.getloadavg()[0])
        report = {
            "processor": processor(),
            "num_cpus": os.cpu_count(),
            "num_services": options.services,
            "phases": phases,
            "load": [round(value, 2) for value in load],
        }
        print(table(report))
        options.out.write_text(json.dumps(report, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(table(report) + "\n")


if __name__ == "__main__":
    main()
