"""The command line: python -m quire_cluster VERB."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from quire_cluster.build import Binaries
from quire_cluster.choice import choose
from quire_cluster.errors import ClusterError
from quire_cluster.images import IMAGES
from quire_cluster.prerequisites import SBIN
from quire_cluster.provider import Provider
from quire_cluster.settings import read_settings
from quire_cluster.versions import ALL_TOOLS


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    # su without a dash leaves the node's tools off root's PATH; kubectl looks for kubectl-quire.
    found = (os.environ.get("PATH", os.defpath), SBIN, str(Path(sys.executable).parent))
    os.environ["PATH"] = os.pathsep.join(found)
    try:
        return _run(options)
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    settings = read_settings()
    if options.verb == "tool":
        return _tool(options.name, settings.cache)
    provider = choose(settings)
    match options.verb:
        case "up":
            provider.up()
        case "down":
            provider.down(purge=options.purge)
        case "status":
            return _status(provider)
        case "images":
            return _images(provider)
        case "addons":
            provider.addons()
        case "kubeconfig":
            provider.require_running()
            print(provider.environment()["KUBECONFIG"])
        case "exec" | "shell":
            _exec(provider, options.command)
        case "small-volume":
            return _small_volume(provider, options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quire_cluster", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("up", help="bring the cluster up, or find it up")
    down = verbs.add_parser("down", help="end it and remove its data; images and binaries stay")
    down.add_argument("--purge", action="store_true", help="remove the stored images too")
    verbs.add_parser("status", help="what runs; ends with 0 when the cluster is usable")
    verbs.add_parser("images", help="build the images and bring them where pods find them")
    verbs.add_parser("addons", help="KEDA and Prometheus, which only some tests need")
    verbs.add_parser("kubeconfig", help="print the path of the kubeconfig")
    shell = verbs.add_parser("shell", help="a shell beside the cluster, with kubectl and helm")
    shell.set_defaults(command=[os.environ.get("SHELL", "/bin/sh")])
    command = verbs.add_parser("exec", help="run a command beside the cluster: exec -- CMD ARGS")
    command.add_argument("command", nargs="+")
    volume = verbs.add_parser("small-volume", help="print a volume whose size is enforced")
    volume.add_argument("name")
    volume.add_argument("size_mib", type=int, nargs="?", help="again: the volume's new size")
    volume.add_argument("--capacity", help="what the volume claims to hold (default: the truth)")
    volume.add_argument("--remove", action="store_true", help="unmount it, files and all")
    tool = verbs.add_parser("tool", help="build a pinned program, print the folder it lies in")
    tool.add_argument("name", choices=sorted(ALL_TOOLS))
    return parser


def _status(provider: Provider) -> int:
    status = provider.status()
    print("\n".join([status.summary, *status.details]))
    return 0 if status.ready else 1


def _images(provider: Provider) -> int:
    for image in IMAGES:
        print(provider.publish(image))
    return 0


def _exec(provider: Provider, command: Sequence[str]) -> None:
    """Become the command, so that its signals and its exit code are its own."""
    provider.require_running()
    wrapped = provider.wrap(command)
    environment = {**os.environ, **provider.environment()}
    sys.stdout.flush()
    try:
        os.execvpe(wrapped[0], wrapped, environment)  # noqa: S606 - the verb's purpose
    except FileNotFoundError as error:
        raise ClusterError(f"{wrapped[0]} was not found on PATH") from error


def _small_volume(provider: Provider, options: argparse.Namespace) -> int:
    if options.remove:
        provider.remove_small_volume(options.name)
        return 0
    if options.size_mib is None:
        raise ClusterError("small-volume needs SIZE_MIB, or --remove")
    capacity = options.capacity or f"{options.size_mib}Mi"
    print(json.dumps(provider.small_volume(options.name, options.size_mib, capacity), indent=1))
    return 0


def _tool(name: str, cache: Path) -> int:
    binaries = Binaries(cache)
    binaries.ensure([ALL_TOOLS[name]])
    print(binaries.folder(ALL_TOOLS[name]))
    return 0
