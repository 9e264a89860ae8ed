"""Compile the C++ variants: `python -m quire_kernels.build`, or the wheel's build hook.

Stands on the standard library alone: the build hook loads this file by its path, where neither
torch nor the package is installed.
"""

import argparse
import hashlib
import os
import platform
import shutil
import subprocess  # runs the compiler
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parent
LIBRARY_FOLDER = PACKAGE / "_lib"
STAMP = "sources.sha256"

# -ffp-contract=off leaves each rounding where the source puts it.
FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-pthread"),
    *("-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Werror"),
)


@dataclass(frozen=True)
class Variant:
    """One instruction set's build of the same sources."""

    name: str
    flags: tuple[str, ...]

    @property
    def library(self) -> str:
        return f"quire_{self.name}.so"


VARIANTS = (
    Variant("avx2", ("-mavx2", "-mfma", "-mf16c")),
    Variant(
        "avx512",
        (
            *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"),
            # g++ 12 warns about the undefined operands inside its own intrinsics (GCC 105593)
            *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
        ),
    ),
)


class BuildFailed(RuntimeError):
    """The compiler is missing or refused the sources. One sentence, then the compiler's words."""


def sources() -> list[Path]:
    """Every C++ file, in a fixed order."""
    return sorted(path for path in PACKAGE.rglob("*") if path.suffix in (".cpp", ".h"))


def sources_digest() -> str:
    """Hash over the C++ files and the flags."""
    digest = hashlib.sha256(repr((FLAGS, VARIANTS)).encode())
    for path in sources():
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def is_supported_machine() -> bool:
    """Whether any variant can run on machines of this kind; elsewhere torch does the work."""
    return sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64")


def is_current(folder: Path = LIBRARY_FOLDER) -> bool:
    """Whether `folder` holds every variant of these very sources."""
    stamp = folder / STAMP
    return (
        stamp.is_file()
        and stamp.read_text().strip() == sources_digest()
        and all((folder / variant.library).is_file() for variant in VARIANTS)
    )


def find_compiler() -> str:
    """$CXX or g++.

    Raises:
        BuildFailed: neither is there.
    """
    wanted = os.environ.get("CXX") or "g++"
    found = shutil.which(wanted)
    if found is None:
        raise BuildFailed(
            f"quire's CPU kernels need a C++17 compiler ({wanted} was not found on PATH); "
            "install g++ or point CXX at one"
        )
    return found


def build(folder: Path = LIBRARY_FOLDER, *, force: bool = False) -> list[Path]:
    """Compile all variants into `folder` unless they are current; returns the libraries' paths.

    Raises:
        BuildFailed: no compiler, or it refused.
    """
    libraries = [folder / variant.library for variant in VARIANTS]
    if not force and is_current(folder):
        return libraries
    compiler = find_compiler()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as staging:
        _run_all(
            command for variant in VARIANTS for command in _compile(compiler, variant, staging)
        )
        _run_all(_link(compiler, variant, staging) for variant in VARIANTS)
        for variant in VARIANTS:
            # a process that has the old file mapped keeps it
            os.replace(Path(staging) / variant.library, folder / variant.library)
    (folder / STAMP).write_text(sources_digest() + "\n")
    return libraries


def _compile(compiler: str, variant: Variant, staging: str) -> list[list[str]]:
    defines = [f"-DQUIRE_VARIANT_{variant.name.upper()}", f'-DQUIRE_SOURCES="{sources_digest()}"']
    common = [compiler, *FLAGS, *defines, f"-I{PACKAGE}", "-c"]
    kernels = [*variant.flags, str(PACKAGE / "csrc/variant.cpp")]
    # for the baseline: the question whether the variant may run must itself run anywhere
    supported = [str(PACKAGE / "csrc/supported.cpp")]
    return [
        [*common, *kernels, "-o", f"{staging}/{variant.name}.o"],
        [*common, *supported, "-o", f"{staging}/{variant.name}_supported.o"],
    ]


def _link(compiler: str, variant: Variant, staging: str) -> list[str]:
    objects = [f"{staging}/{variant.name}.o", f"{staging}/{variant.name}_supported.o"]
    return [compiler, "-shared", "-pthread", *objects, "-o", f"{staging}/{variant.library}"]


def _run_all(commands: Iterable[list[str]]) -> None:
    """Run commands side by side and wait for all of them."""
    running = [
        (command, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        for command in commands
    ]
    results = [
        (command, *process.communicate(), process.returncode) for command, process in running
    ]
    for command, output, _, code in results:
        if code != 0:
            words = output.decode(errors="replace")[:8000]
            raise BuildFailed(
                f"the compiler refused quire's CPU kernels (exit code {code}): "
                f"{' '.join(command)}\n{words}"
            )


def main() -> None:
    """Command line of `python -m quire_kernels.build`."""
    parser = argparse.ArgumentParser(description="Compile quire's C++ kernels in place.")
    parser.add_argument(
        "--force", action="store_true", help="compile even if the sources are unchanged"
    )
    arguments = parser.parse_args()
    if not is_supported_machine():
        sys.exit(
            f"quire has no C++ kernels for {sys.platform} on {platform.machine()}; "
            "torch runs instead"
        )
    try:
        libraries = build(force=arguments.force)
    except BuildFailed as error:
        sys.exit(str(error))
    sys.stdout.write("".join(f"{path}\n" for path in libraries))


if __name__ == "__main__":
    main()
