"""Building the repo's images without a Docker engine, and pushing them to the cluster's registry.

The base is made by debootstrap and kept as an image of its own. The build runs in the host's
network, where packages are; the push runs in the cluster's, where the registry is.
"""

import shutil
from collections.abc import Set
from pathlib import Path

from quire_cluster import network, node
from quire_cluster.console import say, timed
from quire_cluster.images import content_tag, published, record, stage
from quire_cluster.layout import Layout
from quire_cluster.provider import Image
from quire_cluster.shell import run, run_logged, succeeds
from quire_cluster.versions import DEBIAN_SUITE

_BASE_PACKAGES = "python3,python3-venv,ca-certificates"
_BASE_IMAGE = f"localhost/quire-base:{DEBIAN_SUITE}-1"
_DROPPED = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "var/log")
# Where the build finds the host's certificates, package cache and pip settings, where they exist.
_CERTIFICATES = Path("/etc/ssl/certs")
_PIP_SETTINGS = Path("/etc/pip.conf")
_UV_CACHE = "/var/cache/uv"


class BuildahPublisher:
    """Publishes images to the registry of the netns cluster, and on to its node."""

    def __init__(self, layout: Layout, repo: Path) -> None:
        self._layout = layout
        self._repo = repo

    def publish(self, image: Image) -> str:
        tag = content_tag(self._repo, image.inputs, salt=_BASE_IMAGE)
        reference = f"{network.REGISTRY}/{image.name}:{tag}"
        if not self._is_pushed(image, tag):
            self._ensure_base()
            with timed(f"building {image.name}:{tag} (minutes the first time)"):
                self._build(image, reference)
            with timed(f"pushing {image.name}:{tag}"):
                self._push(reference)
        if reference not in node.pulled(self._layout, f"{network.REGISTRY}/{image.name}"):
            with timed(f"pulling {image.name}:{tag} to the node"):
                self._pull(reference)
        self._drop_older(image, keep={reference, published(self._layout).get(image.name, "")})
        record(self._layout, image, reference)
        say(f"{image.name} is {reference}")
        return reference

    def _is_pushed(self, image: Image, tag: str) -> bool:
        repositories = self._layout.registry / "docker/registry/v2/repositories"
        return (repositories / image.name / "_manifests/tags" / tag / "current/link").is_file()

    def _build(self, image: Image, reference: str) -> None:
        arguments = {"BASE_IMAGE": _BASE_IMAGE, "UV_CACHE_DIR": _UV_CACHE, **image.build_arguments}
        context = self._layout.cache / "build-context" / image.name
        stage(self._repo, image.inputs, context)
        run_logged(
            [
                *self._buildah("bud"),
                *(
                    "--layers",
                    "--force-rm",
                    "--isolation",
                    "chroot",
                    "--network",
                    "host",
                    "--pull-never",
                ),
                *(f"--build-arg={name}={value}" for name, value in arguments.items()),
                *(f"--volume={volume}" for volume in self._volumes()),
                *("--file", str(context / image.dockerfile), "--tag", reference),
                str(context),
            ],
            self._layout.cache / "logs" / f"build-{image.name}.log",
        )

    def _volumes(self) -> list[str]:
        uv_cache = self._layout.cache / "uv"
        uv_cache.mkdir(parents=True, exist_ok=True)
        shared = [path for path in (_CERTIFICATES, _PIP_SETTINGS) if path.exists()]
        return [f"{uv_cache}:{_UV_CACHE}", *(f"{path}:{path}:ro" for path in shared)]

    def _push(self, reference: str) -> None:
        fast = ["--compression-format", "zstd", "--compression-level", "1"]
        run([*network.enter(), *self._buildah("push"), "--tls-verify=false", *fast, reference])

    def _pull(self, reference: str) -> None:
        hosts = f"{self._layout.configs}/registries"
        pull = node.ctr(self._layout, "images", "pull", "--plain-http", "--hosts-dir", hosts)
        run([*network.enter(), *pull, "--label", "io.cri-containerd.image=managed", reference])

    def _drop_older(self, image: Image, keep: Set[str]) -> None:
        """Forget all versions of an image but these: a change of torch leaves 6 GB behind in each
        of two stores. What still runs from them keeps its files."""
        repository = f"{network.REGISTRY}/{image.name}"
        names = ["--format", "{{.Name}}:{{.Tag}}", "--filter", f"reference={repository}"]
        built = run([*self._buildah("images"), *names]).split()
        if older := sorted(set(built) - keep):
            run([*self._buildah("rmi"), "--force", *older])
        pulled = node.pulled(self._layout, repository)
        if older := sorted(set(pulled) - keep):
            run(node.ctr(self._layout, "images", "rm", *older))

    def _ensure_base(self) -> None:
        """The stand-in for the Dockerfiles' default base image, made of Debian packages."""
        if succeeds([*self._buildah("inspect"), "--type", "image", _BASE_IMAGE]):
            return
        staging = self._layout.cache / "base-image"
        shutil.rmtree(staging, ignore_errors=True)
        root = staging / "root"
        with timed(f"making the base image of Debian {DEBIAN_SUITE} (about 1 min, once)"):
            include = f"--include={_BASE_PACKAGES}"
            run_logged(
                ["debootstrap", "--variant=minbase", include, DEBIAN_SUITE, str(root)],
                self._layout.cache / "logs" / "base-image.log",
            )
            self._commit_base(root, staging / "root.tar")
        shutil.rmtree(staging)

    def _commit_base(self, root: Path, archive: Path) -> None:
        for folder in _DROPPED:
            shutil.rmtree(root / folder, ignore_errors=True)
            (root / folder).mkdir(parents=True, exist_ok=True)
        run(["tar", "--numeric-owner", "-C", str(root), "-cf", str(archive), "."])
        container = run([*self._buildah("from"), "scratch"]).strip()
        run([*self._buildah("add"), "--quiet", container, str(archive), "/"])
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        run([*self._buildah("config"), "--env", path, "--cmd", "/bin/sh", container])
        run([*self._buildah("commit"), "--quiet", "--rm", container, _BASE_IMAGE])

    def _buildah(self, verb: str) -> list[str]:
        stores = ["--root", str(self._layout.buildah), "--runroot", str(self._layout.buildah_run)]
        return ["buildah", *stores, "--storage-driver", "overlay", verb]
