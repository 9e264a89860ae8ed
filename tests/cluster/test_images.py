import re
from pathlib import Path

import pytest

from quire_cluster import images
from quire_cluster.errors import ClusterError
from quire_cluster.layout import Layout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "engine/inner").mkdir(parents=True)
    (tmp_path / "engine/inner/a.py").write_text("a = 1\n")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    return tmp_path


INPUTS = ("pyproject.toml", "engine")


def test_the_tag_follows_content_and_not_time(tree: Path) -> None:
    before = images.content_tag(tree, INPUTS)
    assert re.fullmatch(r"sha-[0-9a-f]{12}", before), "helm takes digits alone for a number"
    (tree / "engine/inner/a.py").touch()
    assert images.content_tag(tree, INPUTS) == before
    (tree / "engine/inner/a.py").write_text("a = 2\n")
    assert images.content_tag(tree, INPUTS) != before


@pytest.mark.parametrize("change", ["rename", "mode", "salt", "order"])
def test_what_else_the_tag_follows(tree: Path, change: str) -> None:
    before = images.content_tag(tree, INPUTS)
    source = tree / "engine/inner/a.py"
    if change == "rename":
        source.rename(source.with_name("b.py"))
    if change == "mode":
        source.chmod(0o755)
    inputs = tuple(reversed(INPUTS)) if change == "order" else INPUTS
    after = images.content_tag(tree, inputs, salt="base-2" if change == "salt" else "")
    assert (after == before) == (change == "order")


@pytest.mark.parametrize(
    "name", ["a.pyc", "native.so", "README.md", "__pycache__/a.txt", "_lib/stamp"]
)
def test_what_is_made_from_the_sources_is_no_input(tree: Path, name: str) -> None:
    before = images.content_tag(tree, INPUTS)
    made = tree / "engine" / name
    made.parent.mkdir(exist_ok=True)
    made.write_text("made")
    assert images.content_tag(tree, INPUTS) == before


def test_a_missing_input_is_named(tree: Path) -> None:
    with pytest.raises(ClusterError, match=r"hatch_build\.py"):
        images.content_tag(tree, (*INPUTS, "hatch_build.py"))


def test_the_staged_context_is_the_hashed_one(tree: Path, tmp_path: Path) -> None:
    (tree / "engine/native.so").write_text("made")
    staged = tmp_path / "staged"
    staged.mkdir()
    (staged / "old").write_text("from an earlier build")
    images.stage(tree, INPUTS, staged)
    files = sorted(str(path.relative_to(staged)) for path in staged.rglob("*") if path.is_file())
    assert files == ["engine/inner/a.py", "pyproject.toml"]
    assert images.content_tag(staged, INPUTS) == images.content_tag(tree, INPUTS)
    assert {path.stat().st_mtime for path in [staged, *staged.rglob("*")]} == {1_700_000_000}


def test_dockerfiles_copy_only_what_the_tag_covers() -> None:
    root = Path(__file__).parents[2]
    for image in images.IMAGES:
        copied = _copied(root / image.dockerfile)
        assert copied
        assert not copied - set(image.inputs)


def _copied(dockerfile: Path) -> set[str]:
    lines = dockerfile.read_text().splitlines()
    copies = [line.split()[1:-1] for line in lines if line.startswith("COPY ")]
    return {source for copy in copies for source in copy if "--from" not in copy[0]}


def test_the_record_keeps_the_other_image(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    assert images.image_environment(layout) == {}
    images.record(layout, images.ENGINE, "registry/quire-engine:1")
    images.record(layout, images.OPERATOR, "registry/quire-operator:1")
    images.record(layout, images.ENGINE, "registry/quire-engine:2")
    assert images.image_environment(layout) == {
        "QUIRE_ENGINE_IMAGE": "registry/quire-engine:2",
        "QUIRE_OPERATOR_IMAGE": "registry/quire-operator:1",
    }
