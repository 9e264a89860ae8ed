import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from quire_cluster.settings import read_settings
from quire_kernels.build import FLAGS, PACKAGE, VARIANTS, find_compiler, sources_digest
from quire_kernels.library import available_isas

DRIVER = Path(__file__).with_name("sanitizer_driver.cpp")


@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
@pytest.mark.parametrize(
    "variant", [v for v in VARIANTS if v.name in available_isas()], ids=lambda v: v.name
)
def test_kernels_under_address_and_undefined_behaviour_sanitizers(
    variant: "VARIANTS[0]",  # type: ignore[valid-type]
) -> None:
    """Every kernel over odd shapes, on buffers of exactly their size (see the driver)."""
    digest = hashlib.sha256(sources_digest().encode() + DRIVER.read_bytes()).hexdigest()[:16]
    binary = read_settings().cache / "sanitizers" / f"{variant.name}-{digest}"
    if not binary.is_file():
        binary.parent.mkdir(parents=True, exist_ok=True)
        flags = [flag for flag in FLAGS if flag != "-O3"]
        sanitize = ["-O0", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        staged = binary.with_suffix(f".{os.getpid()}")  # trees share the cache
        command = [find_compiler(), *flags, *variant.flags, *sanitize, f"-I{PACKAGE}"]
        subprocess.run([*command, str(DRIVER), "-o", str(staged)], check=True)
        staged.replace(binary)
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=1"}
    result = subprocess.run(
        [str(binary)], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "kernel calls" in result.stdout
