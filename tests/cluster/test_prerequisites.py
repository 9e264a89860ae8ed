import dataclasses

import pytest

from quire_cluster import prerequisites
from quire_cluster.errors import PrerequisiteError
from quire_cluster.prerequisites import Machine

GOOD = Machine(system="Linux", is_root=True, free_gb=100, has=lambda _: True)


def test_a_good_machine_passes() -> None:
    prerequisites.check(GOOD, needs_go=True, needs_disk=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"system": "Darwin"}, "needs Linux .this is Darwin.; .*QUIRE_KUBECONFIG"),
        ({"is_root": False}, "needs root .*; run it as root"),
        ({"free_gb": 12.0}, "needs 30 GB of free disk .*12 GB are free; make room"),
        ({"has": lambda _: False}, "needs Go .*install it"),
    ],
)
def test_what_is_missing_is_one_sentence(change: dict[str, object], message: str) -> None:
    machine = dataclasses.replace(GOOD, **change)
    with pytest.raises(PrerequisiteError, match=message) as caught:
        prerequisites.check(machine, needs_go=True, needs_disk=True)
    assert "\n" not in str(caught.value)


def test_a_built_cache_needs_neither_go_nor_disk() -> None:
    machine = dataclasses.replace(GOOD, free_gb=1.0, has=lambda _: False)
    prerequisites.check(machine, needs_go=False, needs_disk=False)


def test_only_missing_packages_are_asked_for() -> None:
    present = {"containerd", "runc", "ip", "nsenter", "sysctl", "openssl"}
    missing = prerequisites.missing_packages(
        prerequisites.NODE_PACKAGES, lambda program: program in present
    )
    assert missing == ["conntrack", "docker-registry", "iptables", "socat"]
