"""Where the cluster's files lie below the cache."""

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """`state` holds what one life of the cluster writes, and goes with `down`; the image stores
    beside it stay, so that the next `up` pulls nothing again."""

    cache: Path

    @property
    def state(self) -> Path:
        return self.cache / "cluster"

    @property
    def run(self) -> Path:
        return self.state / "run"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def configs(self) -> Path:
        return self.state / "config"

    @property
    def kubelet(self) -> Path:
        return self.state / "kubelet"

    @property
    def pod_logs(self) -> Path:
        return self.state / "pod-logs"

    @property
    def volumes(self) -> Path:
        """Volumes of the default storage class."""
        return self.state / "volumes"

    @property
    def small_volumes(self) -> Path:
        """Volumes whose size is enforced, each a tmpfs."""
        return self.state / "small-volumes"

    @property
    def containerd(self) -> Path:
        """containerd's image store; survives `down`."""
        return self.cache / "containerd"

    @property
    def registry(self) -> Path:
        """The registry's images; survive `down`."""
        return self.cache / "registry"

    @property
    def buildah(self) -> Path:
        """Layers of image builds; survive `down`."""
        return self.cache / "buildah"

    @property
    def buildah_run(self) -> Path:
        """What buildah has mounted; must not outlive a reboot, nor end with the cluster."""
        key = hashlib.sha256(str(self.cache).encode()).hexdigest()[:8]
        return Path("/run") / f"quire-buildah-{key}"

    @property
    def hub(self) -> Path:
        """What the hub mirror serves; survives `down`."""
        return self.cache / "hub"

    @property
    def lock(self) -> Path:
        return self.cache / "cluster.lock"

    @property
    def images_lock(self) -> Path:
        return self.cache / "images.lock"

    @property
    def fingerprint(self) -> Path:
        """Written last by `up`: the configuration that the running cluster was started with."""
        return self.state / "fingerprint"

    @property
    def kubeconfig(self) -> Path:
        return self.state / "admin.kubeconfig"

    @property
    def audit_log(self) -> Path:
        return self.logs / "audit.log"

    @property
    def containerd_socket(self) -> Path:
        return self.run / "containerd.sock"

    @property
    def images_record(self) -> Path:
        """The images that `images` published last (JSON: name → reference)."""
        return self.cache / "images.json"

    def kubeconfig_of(self, user: str) -> Path:
        return self.pki / f"{user}.kubeconfig"
