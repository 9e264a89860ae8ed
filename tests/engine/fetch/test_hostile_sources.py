"""What sources do wrong, alike for all of them: the hub, the object stores, a web server.

For each: the right reason, no byte fetched twice, nothing wrong installed, and told in time. What
one kind alone does stands in test_job_source.py, test_objects.py and test_web.py.
"""

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme

from quire_cluster.hub import Faults, RunningMirror, running_mirror
from quire_engine.config import EngineConfig
from quire_engine.fetch import PlanOptions, SourceOptions, job
from quire_engine.fetch.errors import SourceUnreachable, Stalled
from quire_engine.fetch.plan_command import find

Served = Callable[[str], dict[str, bytes]]
SHARD = "model-00002-of-00003.safetensors"


@dataclass(frozen=True)
class Place:
    """One kind of source of the same model, as the mirror has it."""

    server: RunningMirror
    uri: str
    options: dict[str, Any]
    files: str = ".safetensors"
    """End of the paths that weights are read from."""
    shard: str = SHARD
    """End of the path that one shard is read from: for an archive, that of all."""
    moved: dict[str, str] = field(default_factory=lambda: {"org/tiny": "v2"})
    has_digests: bool = False
    """Tells of each file what it hashes to."""
    has_listing: bool = True
    """Has an address of its own for what there is."""


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def _web(
    authority: trustme.CA, repositories: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningMirror]:
    import tarfile

    root = tmp_path_factory.mktemp("web")
    for revision in ("", "@v2"):
        folder = root / f"files/models{revision}"
        folder.mkdir(parents=True)
        with tarfile.open(folder / "model.tar", "w") as tar:
            tar.add(repositories / f"org/tiny{revision}", "tiny")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with running_mirror(root, tls=context) as server:
        yield server


@pytest.fixture(autouse=True)
def roots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, authority: trustme.CA) -> None:
    """obstore wants some, even for plain HTTP."""
    bundle = tmp_path / "roots.pem"
    authority.cert_pem.write_to_path(str(bundle))
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))


@pytest.fixture(params=["hf", "s3", "gs", "az", "https"])
def place(request: pytest.FixtureRequest, mirror: RunningMirror) -> Iterator[Place]:
    account = {"AZURE_STORAGE_ACCOUNT_NAME": "account"}
    stores = {
        "s3": {"AWS_ENDPOINT_URL": f"{mirror.url}/s3"},
        "gs": {"GOOGLE_BASE_URL": f"{mirror.url}/gs"},
        "az": {"AZURE_STORAGE_ENDPOINT": f"{mirror.url}/az"} | account,
    }
    kind: str = request.param
    if kind == "https":
        server: RunningMirror = request.getfixturevalue("_web")
        server.faults()
        server.clear_log()
        uri = f"{server.url}/web/files/models/model.tar"
        moved = {"files/models": "v2"}
        yield Place(server, uri, {}, "model.tar", "model.tar", moved, has_listing=False)
        server.faults()
    elif kind == "hf":
        yield Place(mirror, "hf://org/tiny", {"endpoint": mirror.url}, has_digests=True)
    else:
        yield Place(mirror, f"{kind}://org/tiny", {"storage": stores[kind]})


@pytest.fixture
def bring(fetch, place: Place, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.setattr(job, "SMALL_BYTES", 10_000)  # the weights come after the other files

    def run(**source: Any) -> int:
        # One connection: see test_web.py on those that are cancelled while they are being made.
        return int(fetch(place.uri, source=place.options | {"connections": 1} | source))

    return run


def sent(place: Place) -> int:
    return sum(entry.bytes for entry in place.server.downloads())


def plan(place: Place, **source: Any) -> None:
    options = SourceOptions(**place.options | {"backoff_seconds": 0.001} | source)
    find(PlanOptions(place.uri, EngineConfig(model="m"), source=options))


def strike_the_weights(
    place: Place, faults: Faults, monkeypatch: pytest.MonkeyPatch, before: Callable[[], None]
) -> None:
    """These faults from the first byte of weights on, what comes before them unharmed."""
    original, struck_before = job._check_config, False

    def struck(*arguments: Any) -> None:
        nonlocal struck_before
        original(*arguments)
        if not struck_before:  # what is listed anew finds the faults as they are
            before()
            place.server.faults(msgspec.structs.replace(faults, path=place.shard))
        struck_before = True

    monkeypatch.setattr(job, "_check_config", struck)


@pytest.fixture
def strike(place: Place, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def run(faults: Faults, before: Callable[[], None] = lambda: None) -> None:
        strike_the_weights(place, faults, monkeypatch, before)

    return run


# ---- lines --------------------------------------------------------------------------------------


def test_cut_connections_are_gone_on_with_and_no_byte_comes_twice(
    bring, fetch, place: Place, served: Served, strike
) -> None:
    strike(Faults(cut_after_bytes=70_000))
    assert bring(max_attempts=100) == 0
    assert fetch.installed == served("org/tiny")
    total = sum(len(content) for content in served("org/tiny").values())
    assert fetch.message["bytesFetched"] == total
    assert sent(place) <= total + (0 if place.has_listing else 20 * 4096)  # an archive's headers


def test_a_fetch_that_was_cut_off_is_finished_by_the_next_and_no_byte_comes_twice(
    bring, fetch, place: Place, served: Served, strike
) -> None:
    strike(Faults(cut_after_bytes=70_000))
    assert bring(max_attempts=1) == 10
    assert fetch.message["reason"] == "SourceUnreachable"
    assert not (fetch.volume / "manifest.json").exists()
    staged = fetch.staged_bytes
    place.server.faults()
    assert bring() == 0
    assert fetch.installed == served("org/tiny")
    total = sum(len(content) for content in served("org/tiny").values())
    assert fetch.message["bytesFetched"] == total - staged


def test_a_slow_line_is_waited_for(bring, fetch, place: Place, served: Served) -> None:
    total = sum(len(content) for content in served("org/tiny").values())
    place.server.faults(Faults(bytes_per_second=total))
    assert bring(stall_seconds=3.0) == 0
    assert fetch.installed == served("org/tiny")


# ---- silence ------------------------------------------------------------------------------------


def test_silence_in_a_file_is_a_stall_told_in_time(bring, fetch, place: Place, strike) -> None:
    begins: list[float] = []
    strike(Faults(stall_after_bytes=1000), lambda: begins.append(time.monotonic()))
    assert bring(stall_seconds=1.5) == 10
    assert fetch.message["reason"] == "Stalled"
    assert 0.9 < time.monotonic() - begins[0] < 1.5 + 1.0


def test_silence_instead_of_a_listing_is_a_stall_told_in_time(bring, fetch, place: Place) -> None:
    fault = Faults(listing=True)
    if not place.has_listing:
        fault = Faults(path=place.files, stall_after_bytes=0)
    place.server.faults(fault)
    begin = time.monotonic()
    assert bring(stall_seconds=1.5) == 10
    assert fetch.message["reason"] == "Stalled"
    assert 0.9 < time.monotonic() - begin < 1.5 + 1.5


def test_silence_in_a_header_ends_a_plan_in_one_wait(place: Place) -> None:
    place.server.faults(Faults(path=place.files, stall_after_bytes=100))
    begin = time.monotonic()
    with pytest.raises(Stalled):
        plan(place, stall_seconds=1.0)
    assert 0.9 < time.monotonic() - begin < 1.0 + 1.5


@pytest.fixture
def deaf() -> Iterator[int]:
    """A port whose connections are never accepted: its queue is full, and the kernel drops SYNs."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.mark.parametrize("kind", ["hf", "s3", "gs", "az", "https"])
def test_no_connection_is_no_stall(fetch, deaf: int, kind: str) -> None:
    url = f"http://127.0.0.1:{deaf}"
    account = {"AZURE_STORAGE_ACCOUNT_NAME": "account"}
    options: dict[str, dict[str, Any]] = {
        "hf": {"endpoint": url},
        "s3": {"storage": {"AWS_ENDPOINT_URL": url}},
        "gs": {"storage": {"GOOGLE_BASE_URL": url}},
        "az": {"storage": {"AZURE_STORAGE_ENDPOINT": url} | account},
        "https": {},
    }
    uri = f"https://127.0.0.1:{deaf}/m.tar" if kind == "https" else f"{kind}://org/tiny"
    begin = time.monotonic()
    assert fetch(uri, source=options[kind] | {"stall_seconds": 1.5}) == 10
    assert fetch.message["reason"] == "SourceUnreachable"
    assert time.monotonic() - begin < 1.5 + 1.5


# ---- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, "SourceUnauthorized"),
        (403, "SourceUnauthorized"),
        (429, "SourceUnreachable"),
        (500, "SourceUnreachable"),
    ],
)
def test_a_refusal_midway_has_its_reason(
    bring, fetch, place: Place, strike, status: int, reason: str
) -> None:
    strike(Faults(status=status))
    assert bring() == 10
    assert fetch.message["reason"] == reason
    assert str(status) in fetch.message["message"]
    assert not (fetch.volume / "model").exists()


@pytest.mark.parametrize("status", [429, 500])
def test_a_refusal_that_passes_is_waited_out(
    bring, fetch, place: Place, strike, served: Served, status: int
) -> None:
    strike(Faults(status=status, times=2))
    assert bring() == 0
    assert fetch.installed == served("org/tiny")


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, "SourceUnauthorized"),
        (403, "SourceUnauthorized"),
        (404, "SourceNotFound"),
        (429, "SourceUnreachable"),
        (500, "SourceUnreachable"),
    ],
)
def test_a_refusal_from_the_first_has_its_reason(
    bring, fetch, place: Place, status: int, reason: str
) -> None:
    listing = Faults(listing=True, status=status)
    place.server.faults(listing if place.has_listing else Faults(path=place.files, status=status))
    assert bring() == 10
    assert fetch.message["reason"] == reason


def test_a_file_that_went_midway_is_a_source_that_changed(
    bring, fetch, place: Place, strike
) -> None:
    """Of a commit nothing goes; there the hub contradicts itself."""
    strike(Faults(status=404))
    assert bring() == 10
    expected = {True: "SourceNotFound", False: "Corrupt"}
    if not place.has_listing:
        expected[False] = "SourceNotFound"  # listed anew, by the same address
    assert fetch.message["reason"] == expected[place.has_digests]


def test_a_file_that_was_gone_for_a_moment_is_listed_anew(
    bring, fetch, place: Place, strike, served: Served
) -> None:
    if place.has_digests:
        pytest.skip("files of a commit do not go")
    strike(Faults(status=404, times=1))
    assert bring() == 0
    assert fetch.installed == served("org/tiny")


# ---- lies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("delta", [-100, 100])
def test_a_wrong_length_is_corrupt_or_another_version(
    bring, fetch, place: Place, strike, delta: int
) -> None:
    strike(Faults(length_delta=delta))
    assert bring() == 10
    assert fetch.message["reason"] == "Corrupt"
    assert not (fetch.volume / "model").exists()


def test_one_wrong_byte_of_a_file_with_a_digest_is_never_served(
    bring, fetch, place: Place, strike, served: Served
) -> None:
    if not place.has_digests:
        pytest.skip("known by ETag and size: README, `ETags for identity, never for content`")
    strike(Faults(flip_byte_at=1000, times=1))
    assert bring() == 0
    assert fetch.installed == served("org/tiny")


def test_what_is_replaced_midway_is_never_mixed(
    bring, fetch, place: Place, strike, served: Served
) -> None:
    """A commit is finished as it was; elsewhere what lies there now is fetched."""
    strike(Faults(main=place.moved))
    assert bring() == 0
    assert fetch.installed == served("org/tiny" if place.has_digests else "org/tiny@v2")


# ---- a server that ignores ranges ---------------------------------------------------------------


def test_a_plan_reads_no_shard_of_a_server_that_ignores_ranges(
    place: Place, repositories: Path
) -> None:
    shards = [path.stat().st_size for path in (repositories / "org/tiny").glob("model-*")]
    place.server.faults(Faults(path=place.files, ignores_range=True, bytes_per_second=2_000_000))
    with pytest.raises(SourceUnreachable, match="Range"):
        plan(place)
    place.server.faults()
    assert sent(place) < 3 * 400_000 < sum(shards)
