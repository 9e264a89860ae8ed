"""The network namespace that the cluster lives in, and its addresses.

All addresses are of the documentation ranges (RFC 5737), so that nothing meant for the cluster can
leave the machine, and no route of the host can be shadowed by them.
"""

import json
from pathlib import Path

from quire_cluster.shell import run, succeeds

NAMESPACE = "quire"
NODE_NAME = "node0"
NODE_ADDRESS = "192.0.2.10"
SERVICE_CIDR = "198.51.100.0/24"
API_SERVICE_ADDRESS = "198.51.100.1"
POD_CIDR = "203.0.113.0/24"
NODE_POD_CIDR = "203.0.113.0/25"
CLUSTER_DOMAIN = "cluster.local"
REGISTRY = f"{NODE_ADDRESS}:5000"
HUB_PORT = 8090

_HANDLE = Path("/run/netns") / NAMESPACE
_BRIDGE = "node0"


def enter() -> list[str]:
    """Prefix of a command that is to run inside the namespace.

    `nsenter`, not `ip netns exec`: the latter remounts /sys and hides the cgroups.
    """
    return ["nsenter", f"--net={_HANDLE}"]


def exists() -> bool:
    return _HANDLE.exists() and succeeds([*enter(), "true"])


def create() -> None:
    """Create the namespace with the node's address on a bridge. Safe to repeat."""
    if not exists():
        if _HANDLE.exists():  # left by a kill between its creation and its mount
            _HANDLE.unlink()
        run(["ip", "netns", "add", NAMESPACE])
    run([*enter(), "ip", "link", "set", "lo", "up"])
    if not _links():
        run([*enter(), "ip", "link", "add", _BRIDGE, "type", "bridge"])
    run([*enter(), "ip", "addr", "replace", f"{NODE_ADDRESS}/32", "dev", _BRIDGE])
    run([*enter(), "ip", "link", "set", _BRIDGE, "up"])
    run([*enter(), "ip", "route", "replace", "default", "dev", _BRIDGE])
    run([*enter(), "sysctl", "-qw", "net.ipv4.ip_forward=1"])


def _links() -> list[str]:
    listed = json.loads(run([*enter(), "ip", "-json", "link", "show"]))
    return [link["ifname"] for link in listed if link["ifname"] == _BRIDGE]


def delete() -> None:
    """Remove the namespace and every interface in it. Safe to repeat."""
    if _HANDLE.exists() and not succeeds(["ip", "netns", "delete", NAMESPACE]):
        _HANDLE.unlink(missing_ok=True)
