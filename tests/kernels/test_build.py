import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from quire_kernels import KernelSettingError, build, library

ROOT = Path(__file__).parents[2]


def test_libraries_in_the_tree_are_current() -> None:
    assert build.is_current(), "run python -m quire_kernels.build"


def test_unchanged_sources_compile_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise AssertionError("asked for a compiler")

    monkeypatch.setattr(build, "find_compiler", refuse)
    assert [path.name for path in build.build()] == ["quire_avx2.so", "quire_avx512.so"]


def test_a_missing_compiler_is_one_clear_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.BuildFailed, match=r"need a C\+\+17 compiler \(no-such-compiler"):
        build.build(tmp_path)
    assert not build.is_current(tmp_path)


def test_a_compiler_that_refuses_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "cxx"
    compiler.write_text("#!/bin/sh\necho no such flag; exit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(build.BuildFailed, match=r"(?s)refused.*exit code 3.*no such flag"):
        build.build(tmp_path / "lib")
    assert not build.is_current(tmp_path / "lib")


def test_a_library_of_other_sources_is_refused() -> None:
    if not library.available_isas():
        pytest.skip("no compiled variant")
    path = build.LIBRARY_FOLDER / f"quire_{library.available_isas()[0]}.so"
    with pytest.raises(KernelSettingError, match="run python -m quire_kernels"):
        library._open_current(path, "another digest")


@pytest.mark.skipif(not build.is_supported_machine(), reason="no variant for this machine")
def test_the_wheel_is_this_platforms_and_carries_the_libraries(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name.endswith(f"-py3-none-{platform}.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"quire_kernels/_lib/quire_{isa}.so" for isa in ("avx2", "avx512")} <= names
    assert "quire_kernels/csrc/variant.cpp" in names
