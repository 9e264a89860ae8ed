"""`make demo`: the main job in front of your eyes, on a cluster of its own.

Chart in, one apply, a real answer streamed, a burst that scales it to two replicas and back to one.
Leaves the cluster up and prints what to try next. Run inside `quire_cluster exec`.
"""

import os
import sys
import time

from rich.console import Console
from rich.syntax import Syntax

from quire_cluster import installation, kube, serving
from quire_cluster.errors import CommandError, NotReadyError, PrerequisiteError
from quire_cluster.faults import Hub

SAMPLE = installation.ROOT / "samples/inferenceservice.yaml"
NAMESPACE = "demo"
NUM_CALLERS = 24
SCALE_SECONDS = 180
HUB_BYTES_PER_SECOND = 50_000_000  # a line on which the download can be watched

console = Console(highlight=False, soft_wrap=True)


def main() -> int:
    started = time.monotonic()
    hub = Hub(os.environ["QUIRE_HUB_ADDRESS"])
    try:
        _install()
        hub.faults(bytes_per_second=HUB_BYTES_PER_SECOND)
        applied = _apply()
        _wait_ready()
        hub.faults()
        _stream(applied)
        _scale_up_and_down()
    except (CommandError, NotReadyError, PrerequisiteError) as error:
        console.print(f"[red]The demo stopped: {error}[/red]")
        console.print("Look closer with: make shell, then: kubectl get qis -A; kubectl get pods -A")
        return 1
    _next_steps(time.monotonic() - started)
    return 0


def _step(text: str) -> None:
    console.print(f"\n[bold cyan]{text}[/bold cyan]")


def _install() -> None:
    _step("1. Install quire with one Helm chart")
    console.print("$ " + " ".join(installation.command()))
    installation.upgrade()
    console.print(kube.kubectl("get", "deployments", namespace=installation.NAMESPACE).rstrip())


def _apply() -> float:
    _step("2. Apply one InferenceService")
    console.print(Syntax(SAMPLE.read_text().rstrip(), "yaml", background_color="default"))
    if kube.get("namespace", NAMESPACE) is None:
        kube.kubectl("create", "namespace", NAMESPACE)
    _remove_the_last_demo()
    applied = time.monotonic()
    console.print("$ kubectl apply -f samples/inferenceservice.yaml")
    console.print(kube.kubectl("apply", "-f", str(SAMPLE), namespace=NAMESPACE).rstrip())
    return applied


def _remove_the_last_demo() -> None:
    """Its service, model and pods; these at once, as nobody's requests are left to drain."""
    kube.kubectl("delete", "inferenceservice", "chat", "--ignore-not-found", namespace=NAMESPACE)
    kube.kubectl("delete", "pods", "--all", "--now", namespace=NAMESPACE)
    kube.wait_until(
        lambda: not kube.items("persistentvolumeclaims", NAMESPACE),
        SCALE_SECONDS,
        "its model to go",
    )


def _wait_ready() -> None:
    """Print Ready's reason and message each time that it changes."""
    _step("3. Watch it become Ready: its one honest reason, as it changes")
    started, seen = time.monotonic(), ""

    def ready() -> bool:
        nonlocal seen
        service = kube.get("inferenceservice", "chat", NAMESPACE)
        now = kube.condition(service)
        line = f"Ready={now['status']} {now['reason']}: {now['message']}"
        if line != seen:
            console.print(f"{time.monotonic() - started:5.1f} s  {line}")
            seen = line
        return bool(now["status"] == "True")

    kube.wait_until(ready, 300, f"{NAMESPACE}/chat to be Ready")
    console.print(kube.kubectl("get", "qis", "chat", namespace=NAMESPACE).rstrip())
    _show_status()


def _show_status() -> None:
    command = ("quire", "status", "chat", "-n", NAMESPACE)
    console.print(f"$ kubectl {' '.join(command)}")
    console.print(kube.kubectl(*command).rstrip(), markup=False)


def _stream(applied: float) -> None:
    _step(f"4. Ask it: {serving.QUESTION}")
    with serving.connect(NAMESPACE) as client:
        pieces = serving.stream(client)
        answer = next(pieces)
        seconds = time.monotonic() - applied
        console.print(answer, end="")
        for piece in pieces:
            console.print(piece, end="")
            answer += piece
    console.print(f"\n(first token {seconds:.1f} s after the apply)")
    if "Paris" not in answer:
        raise NotReadyError(f"the answer names no Paris: {answer!r}")


def _scale_up_and_down() -> None:
    _step(f"5. A burst of {NUM_CALLERS} callers: the operator scales on the waiting requests")
    with serving.connect(NAMESPACE) as client:
        burst = serving.Burst(client, NUM_CALLERS, SCALE_SECONDS)
        try:
            kube.wait_until(lambda: _ready_replicas() == 2, SCALE_SECONDS, "2 ready replicas")
        finally:
            result = burst.stop()
    _print_decision()
    console.print(
        f"2 replicas are ready; {result.num_answered} answers in {result.seconds:.0f} s,"
        f" {len(result.errors)} errors"
    )
    if result.errors:
        raise CommandError(f"a caller got an error: {result.errors[0]}")
    console.print("The burst is over; one replica less once the window has passed ...")
    kube.wait_until(lambda: _status()["replicas"] == 1, SCALE_SECONDS, "1 replica again")
    _print_decision()
    _show_status()


def _status() -> kube.Json:
    return kube.get("inferenceservice", "chat", NAMESPACE)["status"]


def _ready_replicas() -> int:
    return int(_status().get("readyReplicas", 0))


def _print_decision() -> None:
    latest = _status()["scaling"]["decisions"][0]
    inputs = ", ".join(f"{key}={value}" for key, value in latest["inputs"].items())
    console.print(f"decision {latest['from']} -> {latest['to']}: {latest['reason']} ({inputs})")


def _next_steps(seconds: float) -> None:
    _step(f"Done in {seconds:.0f} s. The cluster stays up; try:")
    for command, meaning in (
        ("make shell", "a shell with kubectl and helm on this cluster, then for instance:"),
        ("  kubectl get qis -A", "every service with its reason"),
        (f"  kubectl quire status chat -n {NAMESPACE}", "all that there is to know of one"),
        ("  kubectl quire top -A", "load and speed of all, live"),
        (f"  kubectl -n {NAMESPACE} edit qis chat", "another model, more replicas"),
        ("make cluster-down", "take it all down"),
    ):
        console.print(f"  {command:46} {meaning}")


if __name__ == "__main__":
    sys.exit(main())
