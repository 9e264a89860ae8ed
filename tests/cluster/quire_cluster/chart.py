"""The chart as Helm renders it, without a cluster: for tests."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from quire_cluster import installation
from quire_cluster.build import Binaries
from quire_cluster.settings import read_settings
from quire_cluster.versions import HELM_TOOL

CHART = installation.ROOT / installation.CHART

Object = dict[str, Any]
Helm = Callable[..., subprocess.CompletedProcess[str]]
"""`helm(*arguments, stdin=...)`: its end, whatever it is."""


class Rendered:
    """The objects of one rendering."""

    def __init__(self, objects: list[Object]) -> None:
        self.objects = objects

    def of(self, kind: str) -> list[Object]:
        return [found for found in self.objects if found["kind"] == kind]

    def one(self, kind: str) -> Object:
        (found,) = self.of(kind)
        return found

    @property
    def pod(self) -> Object:
        spec: Object = self.one("Deployment")["spec"]["template"]["spec"]
        return spec

    @property
    def container(self) -> Object:
        (container,) = self.pod["containers"]
        return container  # type: ignore[no-any-return]

    @property
    def environment(self) -> dict[str, str]:
        return {entry["name"]: entry.get("value", "") for entry in self.container["env"]}

    def rules(self) -> Iterator[tuple[Object, Object]]:
        for role in [*self.of("ClusterRole"), *self.of("Role")]:
            for rule in role["rules"]:
                yield role, rule


def helm_program() -> Helm:
    """The Helm that the test cluster uses, built if it has not been yet (as
    `.venv/bin/python -m quire_cluster tool helm` does)."""
    binaries = Binaries(read_settings().cache)
    binaries.ensure([HELM_TOOL])
    program = binaries.program(HELM_TOOL, "helm")

    def run(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [str(program), *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)

    return run


def template(
    helm: Helm, values: Object | None = None, release: str = "quire", *more: str
) -> subprocess.CompletedProcess[str]:
    """`helm template` with these values."""
    command = ("template", release, str(CHART), "--namespace", installation.NAMESPACE, *more)
    return helm(*command, "--values", "-", stdin=json.dumps(values or {}))


def read(done: subprocess.CompletedProcess[str]) -> Rendered:
    """What was rendered, read by libyaml: ten times as fast as by Python."""
    assert done.returncode == 0, done.stderr
    return Rendered([found for found in yaml.load_all(done.stdout, yaml.CSafeLoader) if found])


class Renderer:
    """`render(values, release)`: what would be sent to the API server. The same values are
    rendered once."""

    def __init__(self, helm: Helm) -> None:
        self._helm = helm
        self._done: dict[str, subprocess.CompletedProcess[str]] = {}

    def __call__(self, values: Object | None = None, release: str = "quire") -> Rendered:
        key = json.dumps([values or {}, release])
        if key not in self._done:
            self._done[key] = template(self._helm, values, release)
        return read(self._done[key])
