"""What a machine must have for the cluster of our own, each checked before anything is changed."""

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quire_cluster.console import timed
from quire_cluster.errors import PrerequisiteError
from quire_cluster.shell import run, succeeds

DISK_GB = 30
# program → Debian package that brings it
NODE_PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "docker-registry": "docker-registry",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "socat": "socat",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "sysctl": "procps",
    "openssl": "openssl",
}
IMAGE_PACKAGES = {"buildah": "buildah", "debootstrap": "debootstrap", "tar": "tar"}
_POLICY = Path("/usr/sbin/policy-rc.d")
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_LOCK_SECONDS = 300  # another apt-get may be at work


@dataclass(frozen=True)
class Machine:
    """What the checks look at; a test makes one up."""

    system: str
    is_root: bool
    free_gb: float
    has: Callable[[str], bool]

    @staticmethod
    def here(cache: Path) -> "Machine":
        existing = next(path for path in (cache, *cache.parents) if path.exists())
        return Machine(
            system=platform.system(),
            is_root=os.geteuid() == 0,
            free_gb=shutil.disk_usage(existing).free / 1e9,
            has=find_program,
        )


def find_program(name: str) -> bool:
    """Whether a program can be found, /usr/sbin included (a plain user's PATH lacks it)."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SBIN}") is not None


def check(machine: Machine, *, needs_go: bool, needs_disk: bool) -> None:
    """Raises PrerequisiteError with one sentence for the first thing that is missing."""
    problems = (
        (
            machine.system != "Linux",
            f"the test cluster needs Linux (this is {machine.system}); give it one of yours with "
            "QUIRE_KUBECONFIG, or start a Docker engine for kind",
        ),
        (
            not machine.is_root,
            "the test cluster needs root for its network namespace and containers; run it as root, "
            "or give it a cluster of yours with QUIRE_KUBECONFIG",
        ),
        (
            needs_disk and machine.free_gb < DISK_GB,
            f"the test cluster needs {DISK_GB} GB of free disk for its first build, and "
            f"{machine.free_gb:.0f} GB are free; make room or set QUIRE_CACHE to a larger disk",
        ),
        (
            needs_go and not machine.has("go"),
            "the test cluster builds Kubernetes from source and needs Go 1.26 or later (go was not "
            "found on PATH); install it and run again",
        ),
    )
    for missing, sentence in problems:
        if missing:
            raise PrerequisiteError(sentence)


def missing_packages(packages: dict[str, str], has: Callable[[str], bool]) -> list[str]:
    return sorted({package for program, package in packages.items() if not has(program)})


def install(packages: dict[str, str]) -> None:
    """Install the Debian packages whose programs are missing; no service of theirs is started.

    Raises PrerequisiteError where there is no apt-get.
    """
    wanted = missing_packages(packages, find_program)
    if not wanted:
        return
    if not find_program("apt-get"):
        raise PrerequisiteError(
            f"the test cluster needs {', '.join(wanted)} (Debian's package names); this machine "
            "has no apt-get, install them and run again"
        )
    with timed(f"installing {' '.join(wanted)}"):
        _install(wanted)


def _install(packages: Sequence[str]) -> None:
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    patient = ["-o", f"DPkg::Lock::Timeout={_LOCK_SECONDS}"]
    held_back = _hold_services_back()
    try:
        if not succeeds(["apt-get", "install", "-y", "-qq", "--simulate", *packages]):
            run(["apt-get", "update", "-qq"], environment=quiet)
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *patient]
        run([*command, *packages], environment=quiet)
    finally:
        if held_back:
            _POLICY.unlink(missing_ok=True)


def _hold_services_back() -> bool:
    """Tell the package scripts to start no service (policy-rc.d, invoke-rc.d(8)); whether that
    file is ours to take away again."""
    if _POLICY.exists():
        return False
    with tempfile.NamedTemporaryFile("w", dir=_POLICY.parent, delete=False) as script:
        script.write("#!/bin/sh\nexit 101\n")
    staged = Path(script.name)
    staged.chmod(0o755)
    staged.rename(_POLICY)
    return True
