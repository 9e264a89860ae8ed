"""Object stores: whole fetches and plans, and what goes wrong, alike for all three of them."""

import json
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from obstore.exceptions import GenericError

from quire_cluster.hub import Faults, running_mirror
from quire_engine.config import EngineConfig, LoraModule
from quire_engine.fetch import AdapterFetch, PlanOptions, SourceOptions, job
from quire_engine.fetch.errors import SourceUnreachable, Stalled
from quire_engine.fetch.headers import read_local
from quire_engine.fetch.objects import ObjectSource
from quire_engine.fetch.plan_command import find
from quire_engine.fetch.retry import TryAgain
from quire_engine.fetch.uri import ObjectUri

Served = Callable[[str], dict[str, bytes]]
SHARD = "model-00002-of-00003.safetensors"
ACCOUNT = "fetcher@example.iam.gserviceaccount.com"


@dataclass(frozen=True)
class Store:
    """One kind of object store: how it is reached, and with what."""

    scheme: str
    endpoint: dict[str, str]
    keys: dict[str, str]
    wrong: dict[str, str]
    known: dict[str, str]  # the mirror's side of the keys

    @property
    def uri(self) -> str:
        return f"{self.scheme}://org/tiny"


def _service_account(email: str) -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
    return json.dumps(
        {
            "type": "service_account",
            "client_email": email,
            "private_key": pem,
            "private_key_id": "1",
            "token_uri": "http://127.0.0.1:9/token",
        }
    )


def _s3(url: str) -> Store:
    key, secret = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"
    return Store(
        "s3",
        {"AWS_ENDPOINT_URL": f"{url}/s3", "AWS_REGION": "eu-central-1"},
        {key: "quire", secret: "s3-secret"},
        {key: "quire", secret: "wrong-secret"},
        {"quire": "s3-secret"},
    )


def _gs(url: str) -> Store:
    return Store(
        "gs",
        {"GOOGLE_BASE_URL": f"{url}/gs"},
        {"GOOGLE_SERVICE_ACCOUNT_KEY": _service_account(ACCOUNT)},
        {"GOOGLE_SERVICE_ACCOUNT_KEY": _service_account("stranger@example.com")},
        {ACCOUNT: ""},
    )


def _az(url: str) -> Store:
    sas = "AZURE_STORAGE_SAS_TOKEN"
    return Store(
        "az",
        {"AZURE_STORAGE_ENDPOINT": f"{url}/az", "AZURE_STORAGE_ACCOUNT_NAME": "account"},
        {sas: "sv=2026-01-01&sig=az-secret"},
        {sas: "sv=2026-01-01&sig=wrong-secret"},
        {"sas": "az-secret"},
    )


@pytest.fixture(autouse=True)
def roots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """obstore wants some, even for plain HTTP."""
    bundle = tmp_path / "roots.pem"
    trustme.CA().cert_pem.write_to_path(str(bundle))
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))


@pytest.fixture(params=[_s3, _gs, _az], ids=["s3", "gs", "az"])
def store(request: pytest.FixtureRequest, mirror) -> Store:
    made: Store = request.param(mirror.url)
    return made


@pytest.fixture
def bring(fetch, store: Store) -> Callable[..., int]:
    """Fetch from the store, with these of its settings more."""

    def run(uri: str = store.uri, storage: dict[str, str] | None = None, **source: Any) -> int:
        settings = {"storage": store.endpoint | (storage or {})} | source
        return int(fetch(uri, source=settings))

    return run


def test_brings_what_serving_needs_and_hashes_it(bring, fetch, mirror, served: Served) -> None:
    assert bring() == 0
    assert fetch.installed == served("org/tiny")
    total = sum(len(content) for content in served("org/tiny").values())
    assert fetch.message["bytesTotal"] == fetch.message["bytesFetched"] == fetch.sent() == total
    assert all(len(file["sha256"]) == 64 for file in fetch.manifest["files"])
    assert len(fetch.message["commit"]) == 40


def test_adapters_come_from_buckets_too(fetch, store: Store, repositories: Path) -> None:
    adapter = AdapterFetch("adapters/support", f"{store.scheme}://org/support")
    assert fetch(store.uri, adapters=(adapter,), source={"storage": store.endpoint}) == 0
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        fetched = fetch.volume / adapter.folder / "model" / name
        assert fetched.read_bytes() == (repositories / "org/support" / name).read_bytes()
    engine = EngineConfig(model="m", lora_modules=(LoraModule("support", adapter.uri),))
    source = SourceOptions(storage=store.endpoint)
    found = find(PlanOptions(model=store.uri, engine=engine, source=source))
    assert [facts.rank for facts in found.adapters] == [4]
    assert found.bytes_total == fetch.message["bytesTotal"]


def test_an_adapter_added_later_leaves_the_model_that_others_serve(
    bring, fetch, store: Store, mirror, served: Served
) -> None:
    """A bucket keeps no earlier commit to be pinned to: what it has now would replace the files."""
    assert bring() == 0
    mirror.faults(Faults(main={"org/tiny": "v2"}))
    adapter = AdapterFetch("adapters/support", f"{store.scheme}://org/support")
    source = {"storage": store.endpoint}
    before = fetch.message["commit"]
    assert fetch(store.uri, adapters=(adapter,), keep=True, source=source) == 0
    assert fetch.installed == served("org/tiny")
    assert fetch.message["commit"] == before
    assert (fetch.volume / adapter.folder / "model" / "adapter_model.safetensors").is_file()
    assert bring() == 0
    assert fetch.installed == served("org/tiny@v2"), "a plain run follows the bucket"


def test_a_second_run_downloads_nothing(bring, fetch, mirror) -> None:
    assert bring() == 0
    mirror.clear_log()
    assert bring() == 0
    assert mirror.downloads() == ()


def test_a_plan_reads_headers_alone(store: Store, mirror, repositories) -> None:
    source = SourceOptions(storage=store.endpoint)
    found = find(PlanOptions(store.uri, EngineConfig(model="m"), source=source))
    assert len(found.commit) == 40
    assert found.facts == read_local(repositories / "org/tiny")
    assert sum(entry.bytes for entry in mirror.downloads(".safetensors")) <= 3 * 64 * 1024


def test_a_revision_is_the_commit_that_lies_there(bring, fetch, store: Store, mirror) -> None:
    assert bring() == 0
    commit, source = fetch.message["commit"], {"storage": store.endpoint}
    assert fetch(store.uri, revision=commit, source=source) == 0
    assert fetch.message["bytesFetched"] == 0
    mirror.faults(Faults(main={"org/tiny": "v2"}))
    assert fetch(store.uri, revision=commit, source=source) == 10
    assert fetch.message["reason"] == "SourceNotFound"
    assert commit in fetch.message["message"]


def test_the_empty_object_that_stands_for_the_folder_is_no_file(
    bring, fetch, mirror, served: Served
) -> None:
    assert bring() == 0
    commit = fetch.message["commit"]
    mirror.faults(Faults(folder_markers=True))
    assert bring() == 0
    assert fetch.message["commit"] == commit
    assert fetch.installed == served("org/tiny")


# ---- credentials --------------------------------------------------------------------------------


def test_keys_open_the_store(bring, mirror, store: Store, fetch) -> None:
    mirror.faults(Faults(object_keys=store.known))
    assert bring(storage=store.keys) == 0
    assert fetch.message["bytesFetched"] > 0


def test_wrong_keys_are_refused_and_not_repeated(bring, mirror, store: Store, fetch) -> None:
    mirror.faults(Faults(object_keys=store.known))
    assert bring(storage=store.wrong) == 10
    assert fetch.message["reason"] == "SourceUnauthorized"
    assert "renew" in fetch.message["message"]
    assert "wrong-secret" not in fetch.termination.read_text()
    assert "PRIVATE KEY" not in fetch.termination.read_text()


def test_no_keys_at_all_say_which_are_wanted(bring, mirror, store: Store, fetch) -> None:
    mirror.faults(Faults(object_keys=store.known))
    assert bring() == 10
    assert fetch.message["reason"] == "SourceUnauthorized"
    assert "without credentials" in fetch.message["message"]
    assert next(iter(store.keys)) in fetch.message["message"]


def test_a_missing_bucket_is_not_found(bring, store: Store, fetch) -> None:
    assert bring(f"{store.scheme}://nobody/tiny") == 10
    assert fetch.message["reason"] == "SourceNotFound"


def test_an_empty_prefix_is_not_found(bring, store: Store, fetch) -> None:
    assert bring(f"{store.scheme}://org/nothing") == 10
    assert fetch.message["reason"] == "SourceNotFound"
    assert f"{store.scheme}://org/nothing" in fetch.message["message"]


# ---- what stores and lines do wrong -------------------------------------------------------------


def test_a_cut_connection_is_gone_on_with_where_it_broke(
    bring, fetch, mirror, served: Served
) -> None:
    mirror.faults(Faults(path=SHARD, times=2, cut_after_bytes=70_000))
    assert bring(max_attempts=4, connections=1) == 0
    assert fetch.installed == served("org/tiny")
    assert fetch.sent(SHARD) == len(served("org/tiny")[SHARD])  # no byte came twice


def test_an_interrupted_fetch_is_gone_on_with(bring, fetch, mirror, served: Served) -> None:
    mirror.faults(Faults(path=SHARD, cut_after_bytes=70_000))
    assert bring(max_attempts=1, connections=1) == 10
    assert fetch.message["reason"] == "SourceUnreachable"
    mirror.faults()
    assert bring() == 0
    assert fetch.installed == served("org/tiny")
    assert fetch.sent() == sum(len(content) for content in served("org/tiny").values())


def test_half_files_of_another_start_of_the_machine_are_not_trusted(
    bring, fetch, mirror, served: Served
) -> None:
    """No digest would find the bytes that a power cut lost."""
    mirror.faults(Faults(path=SHARD, cut_after_bytes=70_000))
    assert bring(max_attempts=1, connections=1) == 10
    (fetch.volume / ".staging/boot").write_text("another")
    [half] = fetch.volume.glob(".staging/blobs/version-*.partial")
    with half.open("r+b") as file:
        file.write(bytes(1000))
    mirror.faults()
    assert bring() == 0
    assert fetch.installed == served("org/tiny")


def test_silence_is_a_stall(bring, fetch, mirror) -> None:
    mirror.faults(Faults(path=SHARD, stall_after_bytes=1000))
    assert bring(stall_seconds=1.0, connections=1) == 10
    assert fetch.message["reason"] == "Stalled"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_store_is_asked_again(bring, fetch, mirror, status: int) -> None:
    mirror.faults(Faults(path=SHARD, times=2, status=status))
    assert bring() == 0


def test_a_store_that_stays_busy_is_unreachable(bring, fetch, mirror) -> None:
    mirror.faults(Faults(listing=True, status=503))
    assert bring() == 10
    assert fetch.message["reason"] == "SourceUnreachable"
    assert "503" in fetch.message["message"]


def test_no_store_at_all_is_unreachable(fetch, store: Store) -> None:
    nowhere = {
        name: value if "://" not in value else "http://127.0.0.1:9"
        for name, value in store.endpoint.items()
    }
    assert fetch(store.uri, source={"storage": nowhere}) == 10
    assert fetch.message["reason"] == "SourceUnreachable"


def test_objects_replaced_midway_are_never_mixed(
    bring, fetch, mirror, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The small files are there when the upload of another version begins."""
    monkeypatch.setattr(job, "SMALL_BYTES", 10_000)
    original = job._check_config

    def replaced(*arguments: Any) -> None:
        original(*arguments)
        mirror.faults(Faults(main={"org/tiny": "v2"}))

    monkeypatch.setattr(job, "_check_config", replaced)
    assert bring() == 0
    assert fetch.installed == served("org/tiny@v2")


def test_objects_that_are_replaced_after_they_were_fetched_are_seen(
    bring, fetch, mirror, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = job._require_unchanged

    async def replaced(*arguments: Any) -> None:
        mirror.faults(Faults(main={"org/tiny": "v2"}))
        await original(*arguments)

    monkeypatch.setattr(job, "_require_unchanged", replaced)
    assert bring() == 0
    assert fetch.installed == served("org/tiny@v2")


def test_a_flipped_byte_on_the_volume_is_fetched_anew(
    bring, fetch, store: Store, mirror, served: Served
) -> None:
    assert bring() == 0
    bad = fetch.volume / "model" / SHARD
    content = bytearray(bad.read_bytes())
    content[-1] ^= 1
    bad.write_bytes(content)
    mirror.clear_log()
    source = {"storage": store.endpoint}
    assert fetch(store.uri, repair=True, source=source) == 0
    assert fetch.installed == served("org/tiny")
    assert {entry.path.rpartition("/")[2] for entry in mirror.downloads()} == {SHARD}


@pytest.mark.parametrize("name", ["model.tar", "model.tar.gz", "model.zip"])
def test_an_archive_in_a_bucket_is_refused_as_one(bring, store: Store, fetch, name: str) -> None:
    assert bring(f"{store.scheme}://org/{name}") == 10
    assert fetch.message["reason"] == "SourceNotFound"
    assert "one by one, got an archive" in fetch.message["message"]


def test_an_account_is_demanded_for_azure(fetch) -> None:
    assert fetch("az://org/tiny") == 2
    assert "AZURE_STORAGE_ACCOUNT_NAME" in fetch.message["message"]


def test_settings_that_cannot_be_read_are_refused(fetch) -> None:
    storage = {"GOOGLE_SERVICE_ACCOUNT_KEY": "no json but secret"}
    assert fetch("gs://org/tiny", source={"storage": storage}) == 2
    assert "GOOGLE_SERVICE_ACCOUNT_KEY" in fetch.message["message"]
    assert "secret" not in fetch.message["message"].replace("Secret", "").replace(
        "credentialsSecret", ""
    )


def test_a_ca_of_ours_opens_a_store_over_tls(fetch, repositories: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    pem = authority.cert_pem.bytes().decode()
    with running_mirror(repositories, tls=context) as server:
        storage = {"AWS_ENDPOINT_URL": f"{server.url}/s3"}
        assert fetch("s3://org/tiny", source={"storage": storage}) == 10
        assert fetch.message["reason"] == "SourceUnreachable"
        assert fetch("s3://org/tiny", source={"storage": storage, "ca_pem": pem}) == 0


def test_a_hub_of_a_ca_of_ours_is_listed_and_fetched(fetch, repositories: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    pem = authority.cert_pem.bytes().decode()
    with running_mirror(repositories, tls=context) as server:
        assert fetch(source={"endpoint": server.url}) == 10
        assert fetch.message["reason"] == "SourceUnreachable"
        assert fetch(source={"endpoint": server.url, "ca_pem": pem}) == 0


LATE = """Generic S3 error: Error performing GET http://127.0.0.1:9/org in 61ms - HTTP error
Debug source: Http(HttpError { kind: Timeout, source: reqwest::Error { kind: Request, source: %s"""


@pytest.mark.parametrize(
    ("inner", "failure"),
    [
        (
            'legacy::Error(\n    Connect,\n    ConnectError("tcp connect error", ...',
            SourceUnreachable,
        ),
        ("legacy::Error(\n    Connect,\n    TimedOut,\n)", SourceUnreachable),
        ("TimedOut } })", Stalled),
    ],
)
def test_a_connection_that_is_late_is_none_whichever_timer_says_so(
    inner: str, failure: type
) -> None:
    source = ObjectSource(ObjectUri("s3", "org", "tiny"), SourceOptions())
    told = source._explained(GenericError(LATE % inner), "model.safetensors")
    assert isinstance(told, TryAgain)
    assert told.silent
    assert type(told.failure) is failure
