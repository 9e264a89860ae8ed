"""The node's container side: its image, and what it may leave behind."""

import itertools
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from quire_cluster import oci
from quire_cluster.configs import NODE_IMAGE
from quire_cluster.layout import Layout
from quire_cluster.shell import run, succeeds
from quire_cluster.small_volumes import mounted_below

_LOG_LINKS = Path("/var/log/containers")
_SHIM = "containerd-shim-runc-v2"
Wait = Callable[[str, Callable[[], bool]], None]


def ctr(layout: Layout, *arguments: str) -> list[str]:
    return ["ctr", "--address", str(layout.containerd_socket), "--namespace", "k8s.io", *arguments]


def prepare_images(layout: Layout, node_program: Path, wait: Wait) -> None:
    """Wait for containerd, drop the containers of an earlier life, load the node's own image."""
    wait("containerd", lambda: succeeds(ctr(layout, "version")))
    containers = run(ctr(layout, "containers", "list", "--quiet")).split()
    if containers:
        run(ctr(layout, "containers", "rm", *containers))
    archive = layout.state / "node-tools.tar"
    oci.pack(archive, NODE_IMAGE, {"node-tools": node_program}, ["/node-tools"])
    run(ctr(layout, "images", "import", str(archive)))
    archive.unlink()


def pulled(layout: Layout, repository: str) -> list[str]:
    """References of a repository that the node has."""
    listed = run(ctr(layout, "images", "list", "--quiet"))
    return [name for name in listed.split() if name.startswith(f"{repository}:")]


def end_shims(layout: Layout) -> None:
    """End the shims of this containerd's socket: killed in the wrong moment they outlive it."""
    wanted = [b"-address", str(layout.containerd_socket).encode()]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:  # ended meanwhile
            continue
        is_shim = os.path.basename(arguments[0]).decode(errors="replace") == _SHIM
        if is_shim and _contains(arguments, wanted):
            os.kill(int(folder.name), signal.SIGKILL)


def _contains(arguments: Sequence[bytes], wanted: Sequence[bytes]) -> bool:
    return tuple(wanted) in set(itertools.pairwise(arguments))


def unmount_all(folder: Path) -> None:
    """Unmount lazily what lies below a folder, so that nothing mounted is ever deleted from."""
    for point in mounted_below(folder):
        succeeds(["umount", "--lazy", point])


def remove_log_links(layout: Layout) -> None:
    """The kubelet links container logs from /var/log/containers; those links would dangle."""
    if not _LOG_LINKS.is_dir():
        return
    for link in _LOG_LINKS.iterdir():
        if link.is_symlink() and Path(os.readlink(link)).is_relative_to(layout.pod_logs):
            link.unlink(missing_ok=True)


def remove_stores(layout: Layout) -> None:
    """Remove the stored images; the next `up` and `images` make them again."""
    unmount_all(layout.buildah)
    unmount_all(layout.containerd)
    for store in (layout.registry, layout.containerd, layout.buildah):
        shutil.rmtree(store, ignore_errors=True)
    layout.images_record.unlink(missing_ok=True)
