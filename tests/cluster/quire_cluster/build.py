"""Building Go programs from pinned modules, once for each version.

A finished build is a folder `bin/<name>-<version>-<hash>`, renamed into place when it is whole, so
that a build killed at any moment leaves nothing that could be taken for one.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from quire_cluster.console import timed
from quire_cluster.shell import run_logged
from quire_cluster.versions import GoTool

GO_FOLDER = Path(__file__).resolve().parents[1] / "go"


class Binaries:
    """The folder of built programs below the cache."""

    def __init__(self, cache: Path) -> None:
        self._bin = cache / "bin"
        self._logs = cache / "logs"

    def folder(self, tool: GoTool) -> Path:
        return self._bin / f"{tool.name}-{tool.version}-{build_hash(tool)}"

    def is_built(self, tool: GoTool) -> bool:
        return self.folder(tool).is_dir()

    def missing(self, tools: Iterable[GoTool]) -> list[GoTool]:
        return [tool for tool in tools if not self.is_built(tool)]

    def program(self, tool: GoTool, name: str) -> Path:
        return self.folder(tool) / name

    def ensure(self, tools: Iterable[GoTool]) -> None:
        """Build what is not there yet. Raises CommandError with the compiler's last lines."""
        for tool in self.missing(tools):
            with timed(f"building {tool.name} {tool.version} (about {tool.minutes:g} min, once)"):
                self._build(tool)

    def _build(self, tool: GoTool) -> None:
        staging = self._bin / f".{tool.name}-{os.getpid()}"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        run_logged(
            go_build_command(tool, staging),
            self._logs / f"build-{tool.name}.log",
            environment={"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOWORK": "off"},
            folder=GO_FOLDER / tool.folder,
        )
        for program, package in tool.programs.items():
            (staging / default_name(package, tool)).rename(staging / program)
        staging.rename(self.folder(tool))


def go_build_command(tool: GoTool, out: Path) -> list[str]:
    """One `go build` for all programs of a tool: it shares what they have in common."""
    variables = "".join(f" -X {name}={value}" for name, value in tool.variables.items())
    flags = ["-mod=readonly", "-trimpath", "-ldflags", f"-s -w{variables}"]
    return ["nice", "-n", "5", "go", "build", *flags, "-o", f"{out}/", *tool.programs.values()]


def default_name(package: str, tool: GoTool) -> str:
    """The name that `go build` gives a program: its path's last element that is no version."""
    if package == ".":
        return tool.name
    elements = package.split("/")
    last = elements[-1]
    is_version = last.startswith("v") and last[1:].isdigit()
    return elements[-2] if is_version else last


def build_hash(tool: GoTool) -> str:
    """Eight hex digits over everything that decides what is built."""
    digest = hashlib.sha256(repr((tool.programs, sorted(tool.variables.items()))).encode())
    folder = GO_FOLDER / tool.folder
    for path in sorted([*folder.glob("go.*"), *folder.glob("*.go")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:8]
