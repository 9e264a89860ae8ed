"""Building the repo's images with a Docker engine, for the providers whose machine has one."""

from pathlib import Path

from quire_cluster.console import timed
from quire_cluster.images import content_tag, stage
from quire_cluster.provider import Image
from quire_cluster.shell import run_logged, succeeds


def docker_answers() -> bool:
    return succeeds(["docker", "info"])


def build(repo: Path, cache: Path, image: Image, registry: str) -> str:
    """Build an image unless the engine has this content; returns its reference."""
    reference = f"{registry}/{image.name}:{content_tag(repo, image.inputs)}"
    if not succeeds(["docker", "image", "inspect", reference]):
        with timed(f"building {reference} (minutes the first time)"):
            context = cache / "build-context" / image.name
            stage(repo, image.inputs, context)
            run_logged(
                [
                    *("docker", "build", "--file", str(context / image.dockerfile)),
                    *(f"--build-arg={key}={value}" for key, value in image.build_arguments.items()),
                    *("--tag", reference, str(context)),
                ],
                cache / "logs" / f"build-{image.name}.log",
            )
    return reference
