"""From `kubectl apply` to the first streamed token, with image and model on the node.

    make bench-service   (in `make shell`: python tests/bench/bench_service.py [--runs 5])

Installs the chart, has one service cache the model, then for each run applies a second service on
the same claim, streams the first piece of an answer, and deletes it. Times are of this process's
clock; the phases are those that its pod's status tells, to the second. From exec to ready is what
the pod's engine measured itself (`quire_startup_seconds`).
"""

import argparse
import json
import os
import statistics
import time
import uuid
from datetime import datetime
from pathlib import Path

import httpx
from processor import processor
from prometheus_client.parser import text_string_to_metric_families

from quire_cluster import installation, kube, serving

RESULTS = Path(__file__).parent / "results"
GONE_SECONDS = 120


def measure(namespace: str, runs: int) -> list[dict[str, float]]:
    """Seconds from the apply to each phase, and to the first piece of an answer."""
    kube.apply(serving.manifest("cached", replicas=0, cache={"size": "1Gi", "prefetch": True}),
               namespace)  # fmt: skip
    kube.wait_until(lambda: _is_cached(namespace), 300, "the model to be cached")
    return [_one_run(namespace) for _ in range(runs)]


def _is_cached(namespace: str) -> bool:
    service = kube.get("inferenceservice", "cached", namespace)
    return bool(kube.condition(service, "ModelCached")["status"] == "True")


def _one_run(namespace: str) -> dict[str, float]:
    wall, began = time.time(), time.monotonic()
    kube.apply(serving.manifest(), namespace)
    service = kube.wait_ready(namespace, "chat")
    with serving.connect(namespace) as client:
        next(serving.stream(client))
    seconds = time.monotonic() - began
    [pod] = kube.items("pods", namespace, service["status"]["selector"])
    times = _phases(pod, wall) | {"first token": round(seconds, 2)} | _exec_to_ready(pod)
    print(times, flush=True)
    kube.kubectl("delete", "inferenceservice", "chat", namespace=namespace)
    kube.wait_until(
        lambda: not kube.items("pods", namespace, service["status"]["selector"]),
        GONE_SECONDS,
        "the pod to go",
    )
    return times


def _phases(pod: kube.Json, began: float) -> dict[str, float]:
    ends = {c["type"]: c["lastTransitionTime"] for c in pod["status"]["conditions"]}
    [engine] = pod["status"]["containerStatuses"]
    moments = {
        "pod scheduled": ends["PodScheduled"],
        "engine started": engine["state"]["running"]["startedAt"],
        "pod ready": ends["Ready"],
    }
    return {name: round(_epoch(at) - began, 1) for name, at in moments.items()}


def _exec_to_ready(pod: kube.Json) -> dict[str, float]:
    page = httpx.get(f"http://{pod['status']['podIP']}:8000/metrics").raise_for_status().text
    samples = [s for f in text_string_to_metric_families(page) for s in f.samples]
    seconds = {s.labels["phase"]: s.value for s in samples if s.name == "quire_startup_seconds"}
    return {
        "of it, engine's exec to ready": round(seconds["total"], 2),
        "of it, imports": round(seconds["imports"], 2),
    }


def _epoch(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()


def table(report: dict) -> str:
    """The report as Markdown."""
    lines = [
        f"{report['processor']}, {report['num_cpus']} cores, the whole cluster on them; seconds "
        f"after `kubectl apply`, median of {len(report['runs'])} runs (lowest-highest)",
        "",
        "| phase | seconds |",
        "| --- | --- |",
    ]
    for phase in report["runs"][0]:
        values = [run[phase] for run in report["runs"]]
        lines.append(
            f"| {phase} | {statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f}) |"
        )
    return "\n".join([*lines, "", f"load average before and after: {report['load']}"])


def main() -> None:
    """Measure, print, and write the report as JSON and as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "service.json")
    options = parser.parse_args()
    load = [os.getloadavg()[0]]
    installation.upgrade()
    namespace = f"bench-{uuid.uuid4().hex[:6]}"
    kube.kubectl("create", "namespace", namespace)
    try:
        runs = measure(namespace, options.runs)
    finally:
        kube.kubectl("delete", "namespace", namespace, "--wait=false")
    load.append(os.getloadavg()[0])
    report = {
        "processor": processor(),
        "num_cpus": os.cpu_count(),
        "runs": runs,
        "load": [round(value, 2) for value in load],
    }
    print(table(report))
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(table(report) + "\n")


if __name__ == "__main__":
    main()
