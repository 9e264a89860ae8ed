"""What keeps the tree sound and no linter sees."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_MODULE_LINES = 500


def _tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name]


@pytest.mark.parametrize("folder", ["operator", "engine", "kernels", "tests"])
def test_folders_that_hold_packages_are_none_themselves(folder: str) -> None:
    """`operator/__init__.py` would shadow the standard library's `operator`."""
    assert not (ROOT / folder / "__init__.py").exists()


def test_lock_files_carry_hashes_and_no_addresses() -> None:
    locks = _tracked("requirements/*.txt")
    assert locks
    for lock in locks:
        text = lock.read_text()
        assert "--hash=sha256:" in text
        assert "://" not in text, f"{lock.name} names a host"


def test_every_package_folder_explains_itself() -> None:
    for folder in ("operator", "engine", "kernels", "tests/cluster"):
        readme = ROOT / folder / "README.md"
        assert "2026-" in readme.read_text(), f"{readme} holds no dated decision"


def test_modules_stay_readable() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in _tracked("operator", "engine", "kernels", "tests")
        if path.suffix == ".py" and (lines := path.read_text().count("\n")) > MAX_MODULE_LINES
    }
    assert not long
