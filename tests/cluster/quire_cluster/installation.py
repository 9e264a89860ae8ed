"""Quire on the test cluster, by its own chart, as the demo, the end-to-end tests and benchmarks
install it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quire_cluster import kube
from quire_cluster.errors import PrerequisiteError
from quire_cluster.shell import run

ROOT = Path(__file__).parents[3]
CHART = "charts/quire"
NAMESPACE = "quire-system"
CRD = "inferenceservices.serving.quire.dev"
IMAGE = "QUIRE_OPERATOR_IMAGE"


def command(*more: str) -> list[str]:
    """The helm command, to be run in the repository's root; `more` are values over ours.

    Raises PrerequisiteError outside `quire_cluster exec` and before `quire_cluster images`.
    """
    if IMAGE not in os.environ:
        raise PrerequisiteError(
            f"the test cluster's images must be built ({IMAGE} is not set); run `make images`, and "
            "this inside `quire_cluster exec`"
        )
    repository, _, tag = os.environ[IMAGE].rpartition(":")
    values = (
        f"image.repository={repository}",
        f"image.tag={tag}",
        f"engine.image={os.environ['QUIRE_ENGINE_IMAGE']}",
        f"hub.endpoint=http://{os.environ['QUIRE_HUB_ADDRESS']}",
        "scaling.scrapeIntervalSeconds=2",
        *more,
    )
    return [
        *("helm", "upgrade", "--install", "quire", CHART),
        *("--namespace", NAMESPACE, "--create-namespace", "--wait", "--timeout", "180s"),
        *(part for value in values for part in ("--set", value)),
    ]


def upgrade(*more: str) -> None:
    """Install it, or change the values that it runs with."""
    run(command(*more), folder=ROOT)


@contextmanager
def values(*more: str) -> Iterator[None]:
    """These values over ours for a while."""
    upgrade(*more)
    try:
        yield
    finally:
        upgrade()


def uninstall() -> None:
    """Every InferenceService, the release and the CRD go."""
    kube.kubectl("delete", CRD, "--all", "--all-namespaces")
    run(["helm", "uninstall", "quire", "--namespace", NAMESPACE, "--wait"])
    kube.kubectl("delete", "crd", CRD, "--ignore-not-found")
