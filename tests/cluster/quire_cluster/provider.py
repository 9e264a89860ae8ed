"""What a cluster must be able to do for the demo and the tests, wherever it comes from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Status:
    """ready: usable right now; summary: one line; details: one line for each part."""

    ready: bool
    summary: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Image:
    """One of the repo's two images. name: its repository; dockerfile and inputs: paths relative to
    the repo's root; the tag is the hash of the inputs' content."""

    name: str
    dockerfile: str
    inputs: tuple[str, ...]
    build_arguments: Mapping[str, str] = field(default_factory=dict)


class Provider(Protocol):
    """A source of clusters. Every method may raise ClusterError."""

    name: str

    def up(self) -> None:
        """Bring the cluster up, or find it up; returns when pods can be scheduled."""

    def down(self, *, purge: bool) -> None:
        """Take it away, whatever state it is in. purge: its stored images too."""

    def status(self) -> Status: ...

    def require_running(self) -> None:
        """Raises NotRunningError with the way out."""

    def publish(self, image: Image) -> str:
        """Build an image unless this very content is there; return the reference for a pod."""

    def addons(self) -> None:
        """What only some tests need: KEDA on the node, Prometheus on this machine."""

    def environment(self) -> Mapping[str, str]:
        """What a command that works on the cluster needs in its environment."""

    def wrap(self, command: Sequence[str]) -> list[str]:
        """The command as it must be started to reach the cluster."""

    def small_volume(self, name: str, size_mib: int, capacity: str) -> Mapping[str, object]:
        """A PersistentVolume manifest on `size_mib` MiB that are really enforced."""

    def remove_small_volume(self, name: str) -> None: ...
