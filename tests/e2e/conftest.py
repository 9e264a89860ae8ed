"""A quire installed by its own chart on the test cluster, and one namespace for each test.

Run by `make e2e`, inside `quire_cluster exec`.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from quire_cluster import kube, serving
from quire_cluster.faults import AuditLog, Hub, SmallVolumes
from quire_cluster.shell import run

ROOT = Path(__file__).parents[2]
SYSTEM = "quire-system"


@dataclass(frozen=True)
class Installation:
    """What `helm install` was given, so that a test can upgrade with one thing changed."""

    values: tuple[str, ...]

    def upgrade(self, *more: str) -> None:
        settings = [part for value in (*self.values, *more) for part in ("--set", value)]
        run(
            [
                *("helm", "upgrade", "--install", "quire", str(ROOT / "charts/quire")),
                *("--namespace", SYSTEM, "--create-namespace", "--wait", "--timeout", "180s"),
                *settings,
            ]
        )


def _image(variable: str) -> tuple[str, str]:
    repository, _, tag = os.environ[variable].rpartition(":")
    return repository, tag


@pytest.fixture(scope="session")
def hub() -> Iterator[Hub]:
    hub = Hub(os.environ["QUIRE_HUB_ADDRESS"])
    hub.faults()
    yield hub
    hub.faults()


@pytest.fixture(scope="session")
def quire(hub: Hub) -> Iterator[Installation]:
    """The chart, installed; uninstalled at the end, its CRD with it."""
    if "QUIRE_OPERATOR_IMAGE" not in os.environ:
        pytest.exit("the end-to-end tests need the test cluster: run `make e2e`", returncode=2)
    repository, tag = _image("QUIRE_OPERATOR_IMAGE")
    installation = Installation(
        (
            f"image.repository={repository}",
            f"image.tag={tag}",
            f"engine.image={os.environ['QUIRE_ENGINE_IMAGE']}",
            f"hub.endpoint=http://{hub.address}",
            "scaling.scrapeIntervalSeconds=2",
        )
    )
    installation.upgrade()
    yield installation
    kube.kubectl("delete", "inferenceservices.serving.quire.dev", "--all", "--all-namespaces")
    run(["helm", "uninstall", "quire", "--namespace", SYSTEM, "--wait"])
    kube.kubectl("delete", "crd", "inferenceservices.serving.quire.dev", "--ignore-not-found")


@contextmanager
def fresh_namespace(prefix: str) -> Iterator[str]:
    name = f"{prefix}-{uuid.uuid4().hex[:6]}"
    kube.kubectl("create", "namespace", name)
    try:
        yield name
    finally:
        kube.kubectl("delete", "inferenceservices", "--all", namespace=name)
        kube.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def namespace(quire: Installation) -> Iterator[str]:
    with fresh_namespace("e2e") as name:
        yield name


@pytest.fixture(scope="module")
def chat(quire: Installation) -> Iterator[str]:
    """The namespace of a ready service `chat`, shared by the tests of one module."""
    with fresh_namespace("chat") as name:
        kube.apply(serving.manifest(), name)
        kube.wait_ready(name, "chat")
        yield name


@pytest.fixture
def client(chat: str) -> Iterator[openai.OpenAI]:
    with serving.connect(chat) as client:
        yield client


@pytest.fixture
def audit_log() -> AuditLog:
    """What the API server carries out from now on."""
    return AuditLog(Path(os.environ["QUIRE_AUDIT_LOG"]))


@pytest.fixture
def small_volumes(namespace: str) -> Iterator[SmallVolumes]:
    """Volumes of an enforced size; removed after the test's namespace."""
    volumes = SmallVolumes()
    yield volumes
    volumes.remove()
