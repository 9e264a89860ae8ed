"""https sources: a .gguf file or a .tar archive, of a server certified by a CA of ours."""

import base64
import shutil
import ssl
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trustme

from quire_cluster.hub import Faults, RunningMirror, running_mirror
from quire_cluster.model import GGUF_NAME, NAME, ORGANIZATION, ModelPaths
from quire_engine.config import EngineConfig
from quire_engine.fetch import AdapterFetch, PlanOptions, SourceOptions
from quire_engine.fetch.errors import SourceUnreachable
from quire_engine.fetch.headers import read_local
from quire_engine.fetch.http_ranges import check_redirect
from quire_engine.fetch.plan_command import find

Served = Callable[[str], dict[str, bytes]]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def packed(repositories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """files/models/model.tar holds org/tiny in a folder; in files/models@v2 the file is another."""
    root = tmp_path_factory.mktemp("web")
    for revision in ("", "@v2"):
        folder = root / f"files/models{revision}"
        folder.mkdir(parents=True)
        with tarfile.open(folder / "model.tar", "w") as tar:
            tar.add(repositories / f"org/tiny{revision}", "tiny")
    with tarfile.open(root / "files/models/adapter.tar", "w") as tar:
        tar.add(repositories / "org/support", "support")
    return root


@pytest.fixture(scope="module")
def _server(authority: trustme.CA, packed: Path) -> Iterator[RunningMirror]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with running_mirror(packed, tls=context) as server:
        yield server


@pytest.fixture
def server(_server: RunningMirror) -> RunningMirror:
    _server.faults()
    _server.clear_log()
    return _server


@pytest.fixture
def pem(authority: trustme.CA) -> str:
    return authority.cert_pem.bytes().decode()


@pytest.fixture
def uri(server: RunningMirror) -> str:
    return f"{server.url}/web/files/models/model.tar"


@pytest.fixture
def bring(fetch, uri: str, pem: str) -> Callable[..., int]:
    def run(of: str = uri, **source: Any) -> int:
        return int(fetch(of, source={"ca_pem": pem} | source))

    return run


def test_an_adapters_archive_is_read_where_it_lies(
    fetch, uri: str, pem: str, repositories: Path
) -> None:
    adapter = AdapterFetch("adapters/support", uri.replace("model.tar", "adapter.tar"))
    assert fetch(uri, adapters=(adapter,), source={"ca_pem": pem}) == 0
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        fetched = fetch.volume / adapter.folder / "model" / name
        assert fetched.read_bytes() == (repositories / "org/support" / name).read_bytes()


def sent(server: RunningMirror) -> int:
    return sum(entry.bytes for entry in server.downloads())


def test_an_archive_is_fetched_by_its_files(bring, fetch, server, served: Served, packed) -> None:
    assert bring() == 0
    assert fetch.installed == served("org/tiny")
    assert fetch.message["bytesTotal"] == sum(map(len, served("org/tiny").values()))
    # onnx/ and other copies of the weights are not asked for; headers are, in blocks of 4 KiB.
    assert sent(server) < fetch.message["bytesTotal"] + 20 * 4096
    server.clear_log()
    assert bring() == 0
    assert fetch.message["bytesFetched"] == 0


def test_an_archive_is_planned_by_its_headers(server, uri: str, pem: str, repositories) -> None:
    options = PlanOptions(uri, EngineConfig(model="m"), source=SourceOptions(ca_pem=pem))
    assert find(options).facts == read_local(repositories / "org/tiny")
    assert sent(server) < 500_000


def test_a_cut_connection_is_gone_on_with_where_it_broke(
    bring, fetch, server, served: Served
) -> None:
    assert bring(connections=1) == 0
    whole = sent(server)
    shutil.rmtree(fetch.volume)
    server.clear_log()
    server.faults(Faults(path="model.tar", cut_after_bytes=100_000))
    assert bring(connections=1, max_attempts=100) == 0
    assert fetch.installed == served("org/tiny")
    assert sent(server) == whole


def test_a_file_replaced_midway_is_never_mixed(
    bring, fetch, server, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quire_engine.fetch import job

    monkeypatch.setattr(job, "SMALL_BYTES", 10_000)
    original = job._check_config

    def replaced(*arguments: Any) -> None:
        original(*arguments)
        server.faults(Faults(main={"files/models": "v2"}))

    monkeypatch.setattr(job, "_check_config", replaced)
    # One connection: the client forgets the socket of a TLS handshake that is cancelled under way,
    # which is what became of the others when this one saw the change (a ResourceWarning, at times).
    assert bring(connections=1) == 0
    assert fetch.installed == served("org/tiny@v2")


def test_a_stranger_to_its_ca_is_refused_the_server(fetch, uri: str) -> None:
    assert fetch(uri) == 10
    assert fetch.message["reason"] == "SourceUnreachable"
    assert "CA bundle" in fetch.message["message"]


def test_certificates_that_are_none_are_refused(bring, fetch) -> None:
    assert bring(ca_pem="no certificate") == 2
    assert "models.caBundle" in fetch.message["message"]


# ---- credentials --------------------------------------------------------------------------------

BASIC = "Basic " + base64.b64encode(b"user:web-secret").decode()


@pytest.mark.parametrize(
    ("demanded", "source"),
    [
        ("Bearer web-secret", {"http_token": "web-secret"}),
        (BASIC, {"http_login": ("user", "web-secret")}),
    ],
)
def test_a_token_or_a_password_opens_it(
    bring, server, demanded: str, source: dict[str, Any]
) -> None:
    server.faults(Faults(web_authorization=demanded))
    assert bring(**source) == 0


@pytest.mark.parametrize(
    ("source", "advice"),
    [({}, "without credentials"), ({"http_token": "stale-secret"}, "renew")],
)
def test_without_the_right_ones_it_is_unauthorized(
    bring, fetch, server, source: dict[str, Any], advice: str
) -> None:
    server.faults(Faults(web_authorization="Bearer web-secret"))
    assert bring(**source) == 10
    assert fetch.message["reason"] == "SourceUnauthorized"
    assert advice in fetch.message["message"]
    assert "stale-secret" not in fetch.termination.read_text()


# ---- servers ------------------------------------------------------------------------------------


def test_a_missing_file_is_not_found(bring, fetch, server) -> None:
    assert bring(f"{server.url}/web/files/models/other.tar") == 10
    assert fetch.message["reason"] == "SourceNotFound"


def test_a_server_without_versions_is_refused(bring, fetch, server) -> None:
    server.faults(Faults(web_omits=("ETag", "Last-Modified")))
    assert bring() == 10
    assert "ETag" in fetch.message["message"]


@pytest.fixture
def leaving_tls(authority: trustme.CA, repositories: Path, mirror) -> Iterator[RunningMirror]:
    """A hub that is asked by https and sends its visitors on to plain http."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with running_mirror(repositories, tls=context) as hub:
        hub.faults(Faults(redirect=True, redirect_to=mirror.url))
        yield hub


def test_a_redirect_out_of_tls_is_not_followed(fetch, mirror, leaving_tls, pem: str) -> None:
    source = {"endpoint": leaving_tls.url, "ca_pem": pem}
    assert fetch(source=source) == 10
    assert fetch.message["reason"] == "SourceUnreachable"
    assert "redirect to http://127.0.0.1" in fetch.message["message"]
    assert "signature" not in fetch.message["message"]
    with pytest.raises(SourceUnreachable, match="redirect to http://"):
        find(PlanOptions("hf://org/tiny", EngineConfig(model="m"), source=SourceOptions(**source)))
    assert mirror.downloads() == ()


@pytest.mark.parametrize("location", ["http://other/x", "HTTP://server/x", "http:/x"])
def test_addresses_out_of_tls(location: str) -> None:
    with pytest.raises(SourceUnreachable, match="https"):
        check_redirect(redirect(location))


@pytest.mark.parametrize("location", ["/x", "//other/x", "https://other/x", "https://[::1"])
def test_addresses_within_tls_or_none(location: str) -> None:
    check_redirect(redirect(location))


def redirect(location: str) -> httpx2.Response:
    asked = httpx2.Request("GET", "https://server/model.tar")
    return httpx2.Response(302, headers={"Location": location}, request=asked)


def test_a_redirect_within_tls_is_followed(fetch, leaving_tls, pem: str, served: Served) -> None:
    leaving_tls.faults(Faults(redirect=True))
    assert fetch(source={"endpoint": leaving_tls.url, "ca_pem": pem}) == 0
    assert fetch.installed == served("org/tiny")


def test_a_date_will_do_for_a_version(bring, server) -> None:
    server.faults(Faults(web_omits=("ETag",)))
    assert bring() == 0


@pytest.mark.model
def test_one_gguf_file(fetch, smollm: ModelPaths, authority: trustme.CA, pem: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with running_mirror(smollm.hub, tls=context) as server:
        uri = f"{server.url}/web/{ORGANIZATION}/{NAME}-GGUF/{GGUF_NAME}"
        source = {"ca_pem": pem, "part_bytes": None}
        options = PlanOptions(uri, EngineConfig(model="m"), source=SourceOptions(ca_pem=pem))
        planned = find(options)
        assert sent(server) < 10_000_000
        assert fetch(uri, source=source) == 0
    assert list(fetch.installed) == [GGUF_NAME]
    assert fetch.message["commit"] == planned.commit
    assert fetch.message["bytesTotal"] == planned.bytes_total
