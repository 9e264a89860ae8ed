"""The hub mirror, held against huggingface_hub itself."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from quire_cluster import hub_repos
from quire_cluster.hub import Faults, RunningMirror, running_mirror
from quire_cluster.hub_repos import Repositories
from quire_cluster.tiny_models import write_tiny_model

REPO = "org/tiny"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    write_tiny_model(root / REPO, num_shards=2)
    write_tiny_model(root / "org/tiny@v1", seed=1)
    return root


@pytest.fixture(scope="module")
def _mirror(root: Path) -> Iterator[RunningMirror]:
    with running_mirror(root) as mirror:
        yield mirror


@pytest.fixture
def mirror(_mirror: RunningMirror) -> Iterator[RunningMirror]:
    _mirror.faults()
    _mirror.clear_log()
    yield _mirror
    _mirror.faults()


def file_url(mirror: RunningMirror, path: str = "config.json") -> str:
    return f"{mirror.url}/{REPO}/resolve/main/{path}"


@pytest.mark.parametrize("redirect", [False, True])
def test_huggingface_hub_downloads_a_snapshot(
    mirror: RunningMirror, root: Path, tmp_path: Path, redirect: bool
) -> None:
    mirror.faults(Faults(redirect=redirect))
    snapshot_download(REPO, endpoint=mirror.url, local_dir=tmp_path, token=False)
    for path in (root / REPO).iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_the_listing_has_sizes_and_digests(mirror: RunningMirror, root: Path) -> None:
    info = HfApi(endpoint=mirror.url, token=False).model_info(REPO, files_metadata=True)
    assert info.siblings is not None
    files = {sibling.rfilename: sibling for sibling in info.siblings}
    assert set(files) == {path.name for path in (root / REPO).iterdir()}
    weights = files["model-00001-of-00002.safetensors"]
    assert weights.lfs is not None
    assert weights.lfs.size == (root / REPO / weights.rfilename).stat().st_size
    assert files["config.json"].lfs is None


def test_revisions(mirror: RunningMirror) -> None:
    api = HfApi(endpoint=mirror.url, token=False)
    main, tag = api.model_info(REPO).sha, api.model_info(REPO, revision="v1").sha
    assert main != tag
    assert api.model_info(REPO, revision=main).sha == main
    mirror.faults(Faults(main={REPO: "v1"}))
    assert api.model_info(REPO).sha == tag
    assert api.model_info(REPO, revision=main).sha == main
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="v9")


@pytest.mark.parametrize("token", [False, "some-token"])
def test_a_hidden_repository(mirror: RunningMirror, token: str | bool) -> None:
    mirror.faults(Faults(hidden=(REPO,)))
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=mirror.url, token=token).model_info(REPO)


def test_a_private_repository(mirror: RunningMirror) -> None:
    mirror.faults(Faults(tokens={REPO: "right"}))
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=mirror.url, token=False).model_info(REPO)
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi(endpoint=mirror.url, token="wrong").model_info(REPO)
    assert HfApi(endpoint=mirror.url, token="right").model_info(REPO).sha


def test_a_gated_repository(mirror: RunningMirror, tmp_path: Path) -> None:
    mirror.faults(Faults(gated=(REPO,)))
    assert HfApi(endpoint=mirror.url, token=False).model_info(REPO).sha
    with pytest.raises(GatedRepoError):
        HfApi(endpoint=mirror.url, token=False).get_hf_file_metadata(url=file_url(mirror))


@pytest.mark.parametrize(
    ("header", "status", "span"),
    [
        (None, 200, slice(None)),
        ("bytes=0-9", 206, slice(0, 10)),
        ("bytes=10-", 206, slice(10, None)),
        ("bytes=-5", 206, slice(-5, None)),
        ("bytes=0-99999999", 200, slice(None)),
        ("bytes=99999999-", 416, None),
    ],
)
def test_ranges(
    mirror: RunningMirror, root: Path, header: str | None, status: int, span: slice | None
) -> None:
    headers = {"Range": header} if header else {}
    answer = httpx2.get(file_url(mirror), headers=headers)
    content = (root / REPO / "config.json").read_bytes()
    assert answer.status_code == status
    if span is not None:
        assert answer.content == content[span]


def test_a_head_tells_size_commit_and_etag(mirror: RunningMirror) -> None:
    answer = httpx2.head(file_url(mirror, "model-00001-of-00002.safetensors"))
    assert answer.headers["X-Linked-Size"] == answer.headers["Content-Length"]
    assert len(answer.headers["ETag"].strip('"')) == 64
    assert len(answer.headers["X-Repo-Commit"]) == 40


def test_faults_come_over_the_wire_and_are_checked(mirror: RunningMirror) -> None:
    control = f"{mirror.url}/_control/faults"
    assert httpx2.put(control, json={"status": 503, "times": 1}).status_code == 200
    assert httpx2.get(file_url(mirror)).status_code == 503
    assert httpx2.get(file_url(mirror)).status_code == 200
    assert httpx2.put(control, json={"explode": True}).status_code == 400


def test_the_log_tells_what_was_served(mirror: RunningMirror) -> None:
    httpx2.get(file_url(mirror), headers={"Range": "bytes=5-14"})
    [entry] = httpx2.get(f"{mirror.url}/_control/log").json()
    assert (entry["method"], entry["status"], entry["bytes"]) == ("GET", 206, 10)
    assert (entry["start"], entry["end"]) == (5, 14)
    httpx2.delete(f"{mirror.url}/_control/log")
    assert httpx2.get(f"{mirror.url}/_control/log").json() == []


def test_a_cut_connection(mirror: RunningMirror) -> None:
    mirror.faults(Faults(cut_after_bytes=20))
    with pytest.raises(httpx2.RemoteProtocolError):
        httpx2.get(file_url(mirror))


def test_a_listing_that_never_comes_until_the_fault_ends(mirror: RunningMirror) -> None:
    mirror.faults(Faults(listing=True))
    url = f"{mirror.url}/api/models/{REPO}"
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.get(url, timeout=0.3)
    mirror.faults()
    assert httpx2.get(url).status_code == 200


def test_large_files_are_hashed_once_until_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_tiny_model(tmp_path / REPO)
    monkeypatch.setattr(hub_repos, "KEPT_BYTES", 1_000_000)
    before = Repositories(tmp_path).resolve(REPO, "main")
    hashed: list[str] = []
    hash_file = hub_repos._digests

    def counted(path: Path, size: int) -> tuple[str, str]:
        hashed.append(path.name)
        return hash_file(path, size)

    monkeypatch.setattr(hub_repos, "_digests", counted)
    assert Repositories(tmp_path).resolve(REPO, "main") == before
    assert hashed == ["config.json"]
    write_tiny_model(model, seed=1)
    assert Repositories(tmp_path).resolve(REPO, "main") != before
    assert "model.safetensors" in hashed
